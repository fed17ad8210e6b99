"""What an evaluation is made of, whatever it was read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from train.reader import TarFile


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images inside tars, in evaluation order.

    With `are_files` the entries of `tars` are image files, or files of any kind in which images lie: a size of 0 stands for the whole file.
    """

    tars: Sequence[TarFile]
    shards: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    are_files: bool = False
    # (n, 4): top, left, height and width of the part of each image that is shown; a height of 0 is all of it.
    boxes: npt.NDArray[np.int64] | None = None
    on_white: bool = True  # transparent parts, as in training; benchmarks' own code drops the transparency

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, rows: Sequence[int]) -> "ImageSet":
        """Return some of the images."""
        chosen = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            shards=self.shards[chosen],
            offsets=self.offsets[chosen],
            sizes=self.sizes[chosen],
            boxes=None if self.boxes is None else self.boxes[chosen],
        )

    def unique(self) -> "tuple[ImageSet, npt.NDArray[np.int64]]":
        """Return every image once, each part of one for itself, and where each of these images is among them."""
        columns = [self.shards[:, None], self.offsets[:, None]] + ([] if self.boxes is None else [self.boxes])
        places = np.concatenate(columns, axis=1)
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
    grades: Sequence[
        Mapping[str, float]
    ] = ()  # how relevant each image is to its captions, 0 or more; empty: not graded


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
