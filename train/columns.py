"""Values that losses read beside pictures and captions: scores, labels, stored embeddings; found by uid, kept in the dataset's order."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.progress import Progress
from train.column_files import StoredColumn, column_names, open_column
from train.crop import BOX_NUMBERS, choose_crop
from train.index import Dataset
from train.ragged import Ragged
from train.request import Column
from train.sampler import Indices


@dataclass(frozen=True, kw_only=True)
class SampleColumns:
    """The opened columns, a value or a list per sample."""

    arrays: Mapping[str, npt.NDArray[Any] | Ragged] = field(default_factory=dict)  # by the key of the request
    num_labels: Mapping[str, int] = field(default_factory=dict)  # of columns of labels
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of columns of text labels, by number
    digest: str = ""  # of their values
    crop_boxes: Path | None = None  # file of an array of the stored crops, (n, crops x 4)
    num_crops: int = 0  # how many crops of a picture are stored
    of_crop: frozenset[str] = frozenset()  # keys of vectors that have a part for each of them

    def take(self, indices: Indices, seeds: Sequence[int] = ()) -> dict[str, npt.NDArray[Any]]:
        """Return the values of some samples, lists padded to the longest of the dataset; `seeds`, their draws', choose the stored crops."""
        found = {}
        for key, array in self.arrays.items():
            if isinstance(array, Ragged):
                found[key] = array.take(indices)
            elif key in self.of_crop:
                parts = array.reshape(len(array), self.num_crops, -1)
                found[key] = parts[indices, choose_crop(seeds, self.num_crops)]
            else:
                found[key] = array[indices]
        return found

    def array(self, request: Column) -> npt.NDArray[Any]:
        """Return all values of a column that has one per sample."""
        found = self.arrays[request.key]
        assert not isinstance(found, Ragged), "a request for lists"
        return found

    @property
    def widths(self) -> dict[str, int]:
        """The length of each column of vectors, of those of crops that of a part."""
        return {
            key: array.shape[1] // (self.num_crops if key in self.of_crop else 1)
            for key, array in self.arrays.items()
            if not isinstance(array, Ragged) and array.ndim == 2
        }


def open_columns(
    dataset: Dataset,
    requests: Sequence[Column],
    files: Sequence[str],
    progress: Progress | None = None,
    *,
    crop_boxes: str = "",
) -> SampleColumns:
    """Open the columns that losses and sampling ask for: mapped files, made by the first process of a machine and kept with the dataset's.

    `files` are Parquet files with a column `uid`, or folders of them such as an operator's annotations; they may hold more samples than
    the dataset. A column that none of them has is looked for in the dataset's sidecars. `crop_boxes` is the column of stored crops.
    """
    boxes = Column(name=crop_boxes, kind="vector") if crop_boxes else None
    requests = [*requests, *([boxes] if boxes else [])]
    if not requests:
        return SampleColumns()
    opened = {}
    for request in requests:
        paths, name = _find(dataset, request.name, files)
        opened[request.key] = open_column(dataset.table, request, paths, name, progress)
    for request in requests:
        if request.as_long_as is not None:
            _check_lengths(dataset, request, request.as_long_as, {key: column.values for key, column in opened.items()})
    digest = hashlib.sha256(" ".join(f"{key} {column.digest}" for key, column in opened.items()).encode())
    is_label = {request.key for request in requests if request.kind in {"label", "labels"}}
    return SampleColumns(
        arrays={key: column.values for key, column in opened.items() if boxes is None or key != boxes.key},
        num_labels={key: column.num_labels for key, column in opened.items() if key in is_label},
        label_names={key: column.label_names for key, column in opened.items() if column.label_names},
        digest=digest.hexdigest(),
        **_match_crops(boxes, {request: opened[request.key] for request in requests}),
    )


def _match_crops(boxes: Column | None, opened: Mapping[Column, StoredColumn]) -> dict[str, Any]:
    """Return the stored crops, and the keys of the vectors that have a part for each; refuse what does not go together."""
    parts = [request for request in opened if request.of_crop]
    if boxes is None:
        if parts:
            raise InputError(
                f"column {parts[0].name!r} is read as embeddings of stored crops, and the run shows none; name their column in train.crop_boxes"
            )
        return {}
    num_crops, rest = divmod(_width(opened[boxes]), BOX_NUMBERS)
    if rest or not num_crops:
        raise InputError(
            f"train.crop_boxes: column {boxes.name!r} has {_width(opened[boxes])} numbers a sample; a crop is four: top, left, height and width"
        )
    for request in parts:
        if _width(opened[request]) % num_crops:
            raise InputError(
                f"column {request.name!r} has vectors of {_width(opened[request])} numbers, which are no embeddings of {num_crops} crops each; "
                f"it belongs to other crops than column {boxes.name!r}"
            )
    return {
        "crop_boxes": opened[boxes].file,
        "num_crops": num_crops,
        "of_crop": frozenset(request.key for request in parts),
    }


def _width(column: StoredColumn) -> int:
    assert isinstance(column.values, np.ndarray), "a request for vectors"
    return int(column.values.shape[1])


def _check_lengths(
    dataset: Dataset, one: Column, other: Column, arrays: Mapping[str, npt.NDArray[Any] | Ragged]
) -> None:
    """Refuse lists that differ in length from those whose values theirs belong to."""
    first, second = arrays[one.key], arrays[other.key]
    assert isinstance(first, Ragged) and isinstance(second, Ragged), "requests for lists"
    for (rows, lengths, _), (_, others, _) in zip(first.blocks(), second.blocks(), strict=True):
        wrong = np.flatnonzero(lengths != others)
        if len(wrong):
            row, place = rows.start + int(wrong[0]), int(wrong[0])
            raise InputError(
                f"column {one.name!r} has {lengths[place]} values for sample {dataset.table.uids(np.array([row]))[0]} and {other.name!r} has "
                f"{others[place]}; they belong together one by one, so make both lists equally long"
            )


def _find(dataset: Dataset, name: str, files: Sequence[str]) -> tuple[list[str], str]:
    """Return the files that a column is in, and its name there: those given, or else the dataset's sidecars.

    An operator's column that a build carried is called LABEL.COLUMN in the sidecars; COLUMN alone finds it where only one ends so.
    """
    # The files of a folder are alike: one tells what all of them have.
    given = [paths for paths in map(_list_files, files) if name in column_names(paths[0])]
    if given:
        return [path for paths in given for path in paths], name
    sidecars = [dataset.locate(entry.parquet) for entry in dataset.index.shards]
    carried = column_names(sidecars[0])
    found = [name] if name in carried else [column for column in carried if column.endswith(f".{name}")]
    if len(found) == 1:
        return sidecars, found[0]
    hint = f"; the dataset has {', '.join(found)}: name one of them" if found else ""
    raise InputError(
        f"the run reads the column {name!r}, which neither {', '.join(files) or 'train.columns (empty)'} nor the dataset has{hint}; "
        "name a Parquet file (uid, this column) or the folder of an operator's annotations in train.columns"
    )


def _list_files(path: str) -> list[str]:
    filesystem, bare = fsspec.core.url_to_fs(path)
    if filesystem.isdir(bare):
        found = [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(f"{bare}/*.parquet"))]
        if found:
            return found
    elif filesystem.exists(bare):
        return [path]
    raise InputError(f"train.columns: {path} is neither a Parquet file nor a folder of them")
