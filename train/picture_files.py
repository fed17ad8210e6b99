"""Reads image files that lie in folders, and images inside other files, for evaluation sets that come as a list of such places."""

from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import numpy.typing as npt

from schemas.errors import InputError, StaleDatasetError
from train.loader import CenterCropJob
from train.reader import ImageReader, TarFile


class FileReader(ImageReader):
    """Takes every entry for an image file, which it reads whole, or for a file in which images lie somewhere."""

    def __init__(self, files: Sequence[TarFile]) -> None:
        super().__init__(files)
        self._files = files

    def read(
        self, shards: npt.NDArray[np.integer], offsets: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer]
    ) -> list[bytes]:
        """Return the images in the order asked for: `size` bytes from `offset`, or the whole file where the size is 0."""
        images = []
        for number, offset, size in zip(shards.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            location = self._files[number].location
            try:
                with fsspec.open(location, "rb") as file:
                    file.seek(offset)
                    image = bytes(file.read(size or -1))
            except FileNotFoundError as error:
                raise InputError(f"image {location} is missing; put it there, or take its line out") from error
            if size and len(image) != size:
                raise StaleDatasetError(f"{location} ends within the image of {size} bytes at {offset}; get it again")
            images.append(image)
        return images

    def describe(self, shard: int, offset: int) -> str:
        """Name a file, and the place in it, for an error message."""
        return f"{self._files[shard].location} at byte {offset}" if offset else self._files[shard].location


@dataclass
class FileCropJob(CenterCropJob):
    """Fills a batch of an evaluation with the middle squares of image files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reader = FileReader(self.tars)
