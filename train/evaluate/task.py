"""What an evaluation is made of, whatever it was read from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.reader import TarFile


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images inside tars, in evaluation order."""

    tars: Sequence[TarFile]
    shards: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, rows: Sequence[int]) -> "ImageSet":
        """Return some of the images."""
        chosen = np.asarray(rows, dtype=np.int64)
        return ImageSet(
            tars=self.tars, shards=self.shards[chosen], offsets=self.offsets[chosen], sizes=self.sizes[chosen]
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Images with one or more captions each."""

    images: ImageSet
    captions: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """Images with the class of each, as a position in `classnames`; a template holds `{c}` where the class name goes."""

    images: ImageSet
    labels: npt.NDArray[np.int64]
    classnames: Sequence[str]
    templates: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """One entry of `--data`, opened."""

    name: str
    tasks: Sequence[RetrievalTask | ZeroShotTask]
