"""What an evaluation is made of, whatever it was read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.reader import TarFile


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images inside tars, in evaluation order; with `are_files` every entry of `tars` is one image file, not a tar."""

    tars: Sequence[TarFile]
    shards: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    are_files: bool = False

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, rows: Sequence[int]) -> "ImageSet":
        """Return some of the images."""
        chosen = np.asarray(rows, dtype=np.int64)
        return ImageSet(
            tars=self.tars,
            shards=self.shards[chosen],
            offsets=self.offsets[chosen],
            sizes=self.sizes[chosen],
            are_files=self.are_files,
        )

    def unique(self) -> "tuple[ImageSet, npt.NDArray[np.int64]]":
        """Return every image once, and where each of these images is among them."""
        places = np.stack([self.shards, self.offsets], axis=1)
        _, first, positions = np.unique(places, axis=0, return_index=True, return_inverse=True)
        return self.take(first.tolist()), positions.reshape(-1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A value for each image, such as its source or region, by which metrics are split; "" where it is not known."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Images with one or more captions each."""

    images: ImageSet
    captions: Sequence[Sequence[str]]
    groups: Sequence[Groups] = ()


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """Images with the class of each, as a position in `classnames`; a template holds `{c}` where the class name goes."""

    images: ImageSet
    labels: npt.NDArray[np.int64]
    classnames: Sequence[str]
    templates: Sequence[str]
    groups: Sequence[Groups] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """Labelled images to fit a linear classifier on, and others to test it on; the rest is as in `ZeroShotTask`."""

    images: ImageSet
    labels: npt.NDArray[np.int64]
    test_images: ImageSet
    test_labels: npt.NDArray[np.int64]
    classnames: Sequence[str]
    templates: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class CompositionTask:
    """Images with a caption each and, by kind, the wrong captions made of it; an image without a kind has none of that kind."""

    images: ImageSet
    captions: Sequence[str]
    negatives: Sequence[Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Association:
    """A cue, the images to choose from (positions in the task's images), and those of them that belong to the cue."""

    cue: str
    candidates: Sequence[int]
    associations: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class AssociationTask:
    """Games of WinoGAViL: choose as many images as belong to a cue (Bitton et al., 2022)."""

    images: ImageSet
    instances: Sequence[Association]


Task = RetrievalTask | ZeroShotTask | ProbeTask | CompositionTask | AssociationTask


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """One entry of `--data`, opened."""

    name: str
    tasks: Sequence[Task]
