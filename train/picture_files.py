"""Reads image files that lie in folders, for evaluation sets that come as a list of file names."""

from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from train.loader import CenterCropJob
from train.reader import ImageReader, TarFile


class FileReader(ImageReader):
    """Takes every entry for one image file, and reads it whole."""

    def __init__(self, files: Sequence[TarFile]) -> None:
        super().__init__(files)
        self._files = files

    def read(
        self, shards: npt.NDArray[np.integer], offsets: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer]
    ) -> list[bytes]:
        """Return the files in the order asked for; offsets and sizes play no part."""
        del offsets, sizes
        images = []
        for number in shards.tolist():
            location = self._files[number].location
            try:
                with fsspec.open(location, "rb") as file:
                    images.append(bytes(file.read()))
            except FileNotFoundError as error:
                raise InputError(f"image {location} is missing; put it there, or take its line out") from error
        return images

    def describe(self, shard: int, offset: int) -> str:
        """Name a file for an error message."""
        del offset
        return self._files[shard].location


@dataclass
class FileCropJob(CenterCropJob):
    """Fills a batch of an evaluation with the middle squares of image files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reader = FileReader(self.tars)
