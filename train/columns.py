"""Values that losses read beside pictures and captions: scores, labels, stored embeddings; found by uid, kept in the dataset's order."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.progress import Progress
from train.column_files import column_names, open_column
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

    def take(self, indices: Indices) -> dict[str, npt.NDArray[Any]]:
        """Return the values of some samples, lists padded to the longest of the dataset."""
        return {
            key: array.take(indices) if isinstance(array, Ragged) else array[indices]
            for key, array in self.arrays.items()
        }

    def array(self, request: Column) -> npt.NDArray[Any]:
        """Return all values of a column that has one per sample."""
        found = self.arrays[request.key]
        assert not isinstance(found, Ragged), "a request for lists"
        return found

    @property
    def widths(self) -> dict[str, int]:
        """The length of each column of vectors."""
        return {
            key: array.shape[1]
            for key, array in self.arrays.items()
            if not isinstance(array, Ragged) and array.ndim == 2
        }


def open_columns(
    dataset: Dataset, requests: Sequence[Column], files: Sequence[str], progress: Progress | None = None
) -> SampleColumns:
    """Open the columns that losses and sampling ask for: mapped files, made by the first process of a machine and kept with the dataset's.

    `files` are Parquet files with a column `uid`, or folders of them such as an operator's annotations; they may hold more samples than
    the dataset. A column that none of them has is looked for in the dataset's sidecars.
    """
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
        arrays={key: column.values for key, column in opened.items()},
        num_labels={key: column.num_labels for key, column in opened.items() if key in is_label},
        label_names={key: column.label_names for key, column in opened.items() if column.label_names},
        digest=digest.hexdigest(),
    )


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
