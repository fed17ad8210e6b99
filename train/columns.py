"""Values that losses read beside pictures and captions: scores, labels, stored embeddings; found by uid, kept in the dataset's order."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import InputError
from train.cache import UID_BYTES, parse_uids
from train.index import Dataset
from train.request import Column
from train.sampler import Indices

# Rows of a file and where in the dataset they belong.
_Chunk = tuple[Indices, pa.Array]


@dataclass(frozen=True, kw_only=True)
class SampleColumns:
    """The opened columns, one array (num_samples, ...) per request."""

    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # by the key of the request
    num_labels: Mapping[str, int] = field(default_factory=dict)  # of columns of labels
    digest: str = ""  # of their values

    def take(self, indices: Indices) -> dict[str, npt.NDArray[Any]]:
        """Return the values of some samples."""
        return {key: array[indices] for key, array in self.arrays.items()}

    @property
    def widths(self) -> dict[str, int]:
        """The length of each column of vectors."""
        return {key: array.shape[1] for key, array in self.arrays.items() if array.ndim == 2}


def open_columns(dataset: Dataset, requests: Sequence[Column], files: Sequence[str]) -> SampleColumns:
    """Read the columns that losses ask for.

    `files` are Parquet files with a column `uid`, or folders of them such as an operator's annotations; they may hold more samples than
    the dataset. A column that none of them has is looked for in the dataset's sidecars. Vectors lie in a mapped temporary file.
    """
    if not requests:
        return SampleColumns()
    order = _Order.of(dataset.table.uid)
    arrays: dict[str, npt.NDArray[Any]] = {}
    num_labels: dict[str, int] = {}
    digest = hashlib.sha256()
    for request in requests:
        array = _fill(request, _find(dataset, request.name, files, order), order)
        arrays[request.key] = array
        if request.kind in {"label", "labels"}:
            num_labels[request.key] = int(array.max(initial=-1)) + 1
        digest.update(request.key.encode())
        digest.update(np.ascontiguousarray(array).data)
    return SampleColumns(arrays=arrays, num_labels=num_labels, digest=digest.hexdigest())


def name_labels(dataset: Dataset, request: Column, files: Sequence[str]) -> list[str]:
    """Return what the numbers of a column of text labels stand for; nothing where its labels are integers, which name themselves."""
    counts: Counter[str] = Counter()
    for _, values in _find(dataset, request.name, files, _Order.of(dataset.table.uid)):
        flat = values.flatten() if _is_list(values.type) else values
        if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
            return []
        for found in pc.value_counts(flat.drop_null()).to_pylist():
            counts[found["values"]] += found["counts"]
    kept = [label for label, count in counts.items() if count >= request.min_count]
    return sorted(kept, key=lambda name: (-counts[name], name))


def _find(dataset: Dataset, name: str, files: Sequence[str], order: "_Order") -> list[_Chunk]:
    """Return the parts of a column, of the given files or else of the dataset's sidecars."""
    given = [path for folder in files for path in _list_files(folder)]
    sidecars = [dataset.locate(entry.parquet) for entry in dataset.index.shards]
    for paths in (given, sidecars):
        if _has_column(paths, name):
            return [_read(path, name, order) for path in paths if _has_column([path], name)]
    raise InputError(
        f"the run reads the column {name!r}, which neither {', '.join(files) or 'train.columns (empty)'} nor the dataset has; "
        "name a Parquet file (uid, this column) or the folder of an operator's annotations in train.columns"
    )


@dataclass(frozen=True)
class _Order:
    """Finds the rows of uids."""

    sorted: npt.NDArray[np.bytes_]
    rows: Indices
    uids: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, uids: npt.NDArray[np.uint8]) -> "_Order":
        names = _names(uids)
        rows = np.argsort(names, kind="stable").astype(np.int64)
        return cls(names[rows], rows, uids)

    def find(self, uids: npt.NDArray[np.uint8]) -> Indices:
        """Return the row of each uid, -1 where the dataset has it not."""
        names = _names(uids)
        places = np.minimum(np.searchsorted(self.sorted, names), len(self.sorted) - 1)
        return np.where(self.sorted[places] == names, self.rows[places], -1)

    def spell(self, row: int) -> str:
        return str(self.uids[row].tobytes().hex())


def _names(uids: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(uids).view(f"S{UID_BYTES}")[:, 0]


def _list_files(path: str) -> list[str]:
    filesystem, bare = fsspec.core.url_to_fs(path)
    if filesystem.isdir(bare):
        found = [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(f"{bare}/*.parquet"))]
        if found:
            return found
    elif filesystem.exists(bare):
        return [path]
    raise InputError(f"train.columns: {path} is neither a Parquet file nor a folder of them")


def _has_column(paths: Sequence[str], name: str) -> bool:
    if not paths:
        return False
    # The files of a folder are alike, but several folders may be given.
    folders = {path.rpartition("/")[0]: path for path in paths}
    return any(name in _schema(path).names for path in folders.values())


def _schema(path: str) -> pa.Schema:
    with fsspec.open(path, "rb") as file:
        try:
            return pq.ParquetFile(file).schema_arrow
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} is no Parquet file: {error}") from error


def _read(path: str, name: str, order: _Order) -> _Chunk:
    with fsspec.open(path, "rb") as file:
        table = pq.ParquetFile(file).read(columns=["uid", name])
    if "uid" not in table.column_names:
        raise InputError(f"{path} has no column uid")
    rows = order.find(parse_uids(table.column("uid"), path))
    inside = rows >= 0
    values = table.column(name).filter(pa.array(inside)).combine_chunks()
    return rows[inside], values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _fill(request: Column, chunks: Sequence[_Chunk], order: _Order) -> npt.NDArray[Any]:
    found = _FILLERS[request.kind](request, chunks, order)
    if request.kind in {"number", "vector"}:
        filled = np.zeros(len(order.rows), dtype=bool)
        for rows, values in chunks:
            filled[rows[values.is_valid().to_numpy(zero_copy_only=False)]] = True
        if not filled.all():
            first = order.spell(int(np.argmin(filled)))
            raise InputError(
                f"column {request.name!r} has no value for {int((~filled).sum())} of {len(filled)} samples, {first} first; "
                "annotate them, or select only samples that have one"
            )
    return found


def _numbers(request: Column, chunks: Sequence[_Chunk], order: _Order) -> npt.NDArray[Any]:
    array = np.zeros(len(order.rows), dtype=np.float32)
    for rows, values in chunks:
        _require(pa.types.is_floating(values.type) or pa.types.is_integer(values.type), request, values, "numbers")
        array[rows] = pc.fill_null(values.cast(pa.float32()), 0.0).to_numpy()
    return array


def _vectors(request: Column, chunks: Sequence[_Chunk], order: _Order) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] | None = None
    for rows, values in chunks:
        _require(_is_list(values.type), request, values, "vectors")
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        flat = values.flatten().to_numpy()  # without those of null lists
        count = int(valid.sum())
        width = array.shape[1] if array is not None else len(flat) // max(1, count)
        lengths = pc.list_value_length(values).drop_null().to_numpy()
        if (lengths != width).any():
            raise InputError(
                f"column {request.name!r} has vectors of {sorted(set(lengths.tolist()))} numbers; one length is needed"
            )
        if array is None and width:
            # A file without a name is gone with the process, however it ends.
            kind = np.float16 if flat.dtype == np.float16 else np.float32
            array = np.memmap(tempfile.TemporaryFile(), dtype=kind, mode="w+", shape=(len(order.rows), width))  # noqa: SIM115
        if array is not None:
            array[rows[valid]] = flat.reshape(count, width)
    return array if array is not None else np.zeros((len(order.rows), 0), dtype=np.float32)


def _labels(request: Column, chunks: Sequence[_Chunk], order: _Order) -> npt.NDArray[Any]:
    lists = [(rows, values.to_pylist()) for rows, values in chunks]
    as_lists = [
        (int(row), value if isinstance(value, list) else [] if value is None else [value])
        for rows, values in lists
        for row, value in zip(rows, values, strict=True)
    ]
    numbers = _number_labels(request, [labels for _, labels in as_lists])
    if request.kind == "label":
        array = np.full(len(order.rows), -1, dtype=np.int64)
        for (row, _), found in zip(as_lists, numbers, strict=True):
            array[row] = found[0] if found else -1
        return array
    padded = np.full((len(order.rows), max(1, *map(len, numbers), 1)), -1, dtype=np.int64)
    for (row, _), found in zip(as_lists, numbers, strict=True):
        padded[row, : len(found)] = found
    return padded


def _number_labels(request: Column, labels: Sequence[Sequence[object]]) -> list[list[int]]:
    """Return integers as they are; texts numbered from the most frequent, ties in alphabetical order, rare ones left out."""
    counts = Counter(label for row in labels for label in set(row) if label is not None)
    if all(isinstance(label, int) for label in counts):
        negative = next((label for label in counts if isinstance(label, int) and label < 0), None)
        if negative is not None:
            raise InputError(f"column {request.name!r} has the label {negative}; labels are 0 or more")
        return [[label for label in row if isinstance(label, int)] for row in labels]
    _require(all(isinstance(label, str) for label in counts), request, next(iter(counts)), "integers or texts")
    kept = [label for label, count in counts.items() if count >= request.min_count]
    if not kept:
        raise InputError(f"no label of column {request.name!r} is on {request.min_count} samples; lower min_count")
    vocabulary = {
        label: number for number, label in enumerate(sorted(kept, key=lambda name: (-counts[name], str(name))))
    }
    return [[vocabulary[label] for label in dict.fromkeys(row) if label in vocabulary] for row in labels]


def _number_lists(request: Column, chunks: Sequence[_Chunk], order: _Order) -> npt.NDArray[Any]:
    for _, values in chunks:
        _require(_is_list(values.type), request, values, "lists of numbers")
    lists = [
        (int(row), value or []) for rows, values in chunks for row, value in zip(rows, values.to_pylist(), strict=True)
    ]
    array = np.zeros((len(order.rows), max([1, *(len(value) for _, value in lists)])), dtype=np.float32)
    for row, value in lists:
        array[row, : len(value)] = value
    return array


def _partners(request: Column, chunks: Sequence[_Chunk], order: _Order) -> npt.NDArray[Any]:
    array = np.full(len(order.rows), -1, dtype=np.int64)
    for rows, values in chunks:
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        array[rows[valid]] = order.find(parse_uids(pa.chunked_array([values.drop_null()]), f"column {request.name!r}"))
    return array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _require(is_right: bool, request: Column, found: object, wanted: str) -> None:
    if not is_right:
        what = found.type if isinstance(found, pa.Array) else repr(found)
        raise InputError(f"column {request.name!r} must hold {wanted}, it holds {what}")


_FILLERS = {
    "number": _numbers,
    "numbers": _number_lists,
    "vector": _vectors,
    "label": _labels,
    "labels": _labels,
    "uid": _partners,
}
