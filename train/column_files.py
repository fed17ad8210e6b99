"""Columns beside a dataset's own, in the dataset's order, in files that all processes of a machine map.

Made once from Parquet files that hold a uid, one row group at a time, and found again by later runs as long as those files stay as they are:
`values.npy`, for lists `values.bin` and `ends.npy`, and `column.json`. Beside the dataset's mapped columns, with which they are removed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from train.cache import SampleTable
from train.made_once import make_once, name_folder, read_ahead
from train.ragged import Ragged
from train.request import Column
from train.uids import Indices, UidOrder, is_text, parse_uids

_FORMAT = 1  # part of the folder's name: raise it when the files change
_COLUMN_FILE, _VALUES_FILE, _LIST_VALUES_FILE, _ENDS_FILE = "column.json", "values.npy", "values.bin", "ends.npy"
_READ_AHEAD = 4
_STATS_AT_ONCE = 32
_BLOCK = 1 << 18  # rows


@dataclass(frozen=True)
class StoredColumn:
    """An opened column."""

    values: "npt.NDArray[Any] | Ragged"
    digest: str  # of the values
    num_labels: int  # of a column of labels, one more than the largest
    label_names: tuple[str, ...]  # what the numbers of text labels stand for
    file: Path  # of the values, where there is one or a vector per sample


@dataclass(frozen=True)
class _Facts:
    """What a filler says of what it wrote."""

    dtype: str = ""  # of lists' values
    fill: float = 0.0
    num_labels: int = 0
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Parquet files with uids and a column."""

    paths: Sequence[str]
    name: str
    order: UidOrder
    progress: Progress = field(default_factory=SilentProgress)

    def stream(self) -> Iterator[tuple[Indices, pa.Array]]:
        """Yield, one row group after the other, the dataset's rows that have a value and the values."""
        groups = (
            (path, footer, number)
            for path, footer in read_ahead(_read_footer, self.paths, num_threads=_READ_AHEAD)
            if self.name in footer.schema.to_arrow_schema().names
            for number in range(footer.num_row_groups)
        )
        seen = np.zeros(len(self.order.rows), dtype=bool)
        for path, rows, values in read_ahead(self._read, groups, num_threads=_READ_AHEAD):
            ordered = np.sort(rows)
            again = np.concatenate([ordered[1:][np.diff(ordered) == 0], rows[seen[rows]]])
            if len(again):
                uid = self.order.uids[again[0]].tobytes().hex()
                raise InputError(f"{path} has the uid {uid} once more; keep one {self.name} per uid")
            seen[rows] = True
            yield rows, values
            self.progress.advance(len(rows))

    def _read(self, group: tuple[str, pq.FileMetaData, int]) -> tuple[str, Indices, pa.Array]:
        path, footer, number = group
        with fsspec.open(path, "rb") as file:
            table = pq.ParquetFile(file, metadata=footer).read_row_group(number, columns=["uid", self.name])
        if "uid" not in table.column_names:
            raise InputError(f"{path} has no column uid")
        rows = self.order.find(parse_uids(table.column("uid"), path))
        inside = rows >= 0
        values = table.column(self.name).filter(pa.array(inside)).combine_chunks()
        return path, rows[inside], values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


_Filler = Callable[[Column, Source, Path], _Facts]


def open_column(
    table: SampleTable, request: Column, paths: Sequence[str], name: str = "", progress: Progress | None = None
) -> StoredColumn:
    """Return a column of the dataset whose table this is, read from files that have it under `name` (by default the request's).

    They may hold other samples besides. Raises where a sample comes twice, where numbers or vectors are missing, and where values are not
    what the request says.
    """
    name = name or request.name
    identity = name_folder(_FORMAT, asdict(request), name, _identify(paths))
    folder = Path(table.folder) / "columns" / identity
    bar = progress or SilentProgress()
    try:
        make_once(folder, partial(_make, table, request, name, paths, bar), mark=_COLUMN_FILE)
    finally:
        bar.close()
    return _load(folder)


def open_weights(table: SampleTable, path: str) -> npt.NDArray[np.float64]:
    """Return the weights of a file (uid, weight) in the dataset's order; every sample must have one, and only one."""
    source = Source([path], "weight", UidOrder.of(table.uid))
    weights = np.full(len(table.uid), np.nan)
    seen = np.zeros(len(weights), dtype=bool)
    for rows, values in source.stream():
        if not _is_number(values.type):
            raise InputError(f"{path} has weights of type {values.type}; they must be numbers")
        if values.null_count:
            raise InputError(f"{path} has {values.null_count} rows without a weight; give 0 to leave a sample out")
        seen[rows] = True
        weights[rows] = values.cast(pa.float64()).to_numpy()
    if not seen.all():
        first = table.uid[int(np.argmin(seen))].tobytes().hex()
        raise InputError(
            f"{path} has no weight for {int((~seen).sum())} of the dataset's {len(seen)} samples, {first} first; "
            "give 0 to leave a sample out"
        )
    return weights


def column_names(path: str) -> list[str]:
    """Return the names of a file's columns."""
    names: list[str] = _read_footer(path)[1].schema.to_arrow_schema().names
    return names


def _read_footer(path: str) -> tuple[str, pq.FileMetaData]:
    with fsspec.open(path, "rb") as file:
        try:
            return path, pq.ParquetFile(file).metadata
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} is no Parquet file: {error}") from error


def _identify(paths: Sequence[str]) -> list[str]:
    """Return what changes when a file does: its name, its size, and its time or tag."""
    with ThreadPoolExecutor(_STATS_AT_ONCE) as threads:
        return list(threads.map(_describe, paths))


def _describe(path: str) -> str:
    filesystem, bare = fsspec.core.url_to_fs(path)
    return str(sorted((key, str(value)) for key, value in filesystem.info(bare).items()))


def _make(
    table: SampleTable, request: Column, name: str, paths: Sequence[str], progress: Progress, folder: Path
) -> None:
    progress.start(f"column {request.name}", len(table.uid), "samples")
    source = Source(paths, name, UidOrder.of(table.uid), progress)
    facts = asdict(_FILLERS[request.kind](request, source, folder))
    digest = hashlib.sha256(json.dumps([request.kind, facts["label_names"]]).encode())
    for part in (_VALUES_FILE, _ENDS_FILE, _LIST_VALUES_FILE):
        if (folder / part).exists():
            with (folder / part).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    (folder / _COLUMN_FILE).write_text(json.dumps({**facts, "digest": digest.hexdigest()}))


def _load(folder: Path) -> StoredColumn:
    facts: Mapping[str, Any] = json.loads((folder / _COLUMN_FILE).read_text())
    values: npt.NDArray[Any] | Ragged
    if facts["dtype"]:
        path = folder / _LIST_VALUES_FILE
        flat = (
            np.memmap(path, facts["dtype"], "r").view(np.ndarray)
            if path.stat().st_size
            else np.zeros(0, facts["dtype"])
        )
        values = Ragged(flat, _map(folder / _ENDS_FILE), facts["fill"])
    else:
        values = _map(folder / _VALUES_FILE)
    return StoredColumn(
        values, facts["digest"], facts["num_labels"], tuple(facts["label_names"]), folder / _VALUES_FILE
    )


def _map(path: Path) -> npt.NDArray[Any]:
    # Viewed as a plain array because a memmap's own indexing costs ten times as much.
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r").view(np.ndarray)
    return mapped


# ---- One value per sample ---------------------------------------------------------------------------------------------


def _fill_numbers(request: Column, source: Source, folder: Path) -> _Facts:
    count = len(source.order.rows)
    array = np.lib.format.open_memmap(folder / _VALUES_FILE, "w+", np.float32, (count,))
    filled = np.zeros(count, dtype=bool)
    for rows, values in source.stream():
        _require(_is_number(values.type), request, values, "numbers")
        numbers = values.cast(pa.float32()).fill_null(np.nan).to_numpy()
        _require_range(numbers, rows, request, source)
        array[rows] = numbers
        filled[rows] = np.isfinite(numbers)
    _require_all(filled, request, source)
    return _Facts()


def _fill_vectors(request: Column, source: Source, folder: Path) -> _Facts:
    count = len(source.order.rows)
    filled = np.zeros(count, dtype=bool)
    array: npt.NDArray[Any] | None = None
    for rows, values in source.stream():
        _require(_is_list(values.type) and _is_number(values.type.value_type), request, values, "vectors")
        is_valid = values.is_valid().to_numpy(zero_copy_only=False)
        if not is_valid.any():
            continue
        lengths = np.unique(pc.list_value_length(values).drop_null().to_numpy())
        width = array.shape[1] if array is not None else int(lengths[0])
        if len(lengths) > 1 or lengths[0] != width:
            found = sorted({width, *lengths.tolist()})
            raise InputError(f"column {request.name!r} has vectors of {found} numbers; one length is needed")
        flat = values.flatten().to_numpy(zero_copy_only=False)  # without those of null lists
        if array is None:
            kind = np.float16 if flat.dtype == np.float16 else np.float32
            array = np.lib.format.open_memmap(folder / _VALUES_FILE, "w+", kind, (count, width))
        vectors = flat.reshape(-1, width)
        array[rows[is_valid]] = vectors
        filled[rows[is_valid]] = np.isfinite(vectors).all(axis=1)
    _require_all(filled, request, source)
    return _Facts()


def _fill_partners(request: Column, source: Source, folder: Path) -> _Facts:
    array = np.lib.format.open_memmap(folder / _VALUES_FILE, "w+", np.int64, (len(source.order.rows),))
    array[:] = -1
    for rows, values in source.stream():
        is_valid = values.is_valid().to_numpy(zero_copy_only=False)
        others = parse_uids(pa.chunked_array([values.drop_null()]), f"column {request.name!r}")
        array[rows[is_valid]] = source.order.find(others)
    return _Facts()


def _require_range(numbers: npt.NDArray[np.float32], rows: Indices, request: Column, source: Source) -> None:
    """Raise where a number is out of the request's range; one that is none is another matter."""
    wrong = np.flatnonzero((numbers < request.least) | (numbers > request.most))
    if len(wrong):
        uid = source.order.uids[rows[wrong[0]]].tobytes().hex()
        raise InputError(
            f"column {request.name!r} has {numbers[wrong[0]]:g} for {uid}; its numbers are {request.least:g} or more"
            + (f" and {request.most:g} or less" if request.most < np.inf else "")
        )


def _require_all(filled: npt.NDArray[np.bool_], request: Column, source: Source) -> None:
    if not filled.all():
        first = source.order.uids[int(np.argmin(filled))].tobytes().hex()
        raise InputError(
            f"column {request.name!r} has no value for {int((~filled).sum())} of {len(filled)} samples, {first} first; "
            "annotate them, or select only samples that have one"
        )


# ---- Lists ------------------------------------------------------------------------------------------------------------


class _Lists:
    """Lists as they come, in a file; read back in the dataset's order."""

    def __init__(self, path: Path, num_rows: int, dtype: npt.DTypeLike) -> None:
        self._file: BinaryIO = path.open("w+b")
        path.unlink()
        self._dtype = np.dtype(dtype)
        self._starts = np.zeros(num_rows, dtype=np.int64)
        self._sizes = np.zeros(num_rows, dtype=np.int64)
        self._end = 0

    def add(self, rows: Indices, sizes: Indices, values: npt.NDArray[Any]) -> None:
        """Take in the lists of some rows, one behind the other."""
        self._starts[rows] = self._end + np.cumsum(sizes) - sizes
        self._sizes[rows] = sizes
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._end += len(values)

    def blocks(self) -> Iterator[tuple[Indices, npt.NDArray[Any]]]:
        """Yield the sizes and values of the lists of every block of rows."""
        self._file.flush()
        stored = np.memmap(self._file, self._dtype, "r") if self._end else np.zeros(0, self._dtype)
        for start in range(0, len(self._sizes), _BLOCK):
            sizes = self._sizes[start : start + _BLOCK]
            first = np.repeat(self._starts[start : start + _BLOCK] - (np.cumsum(sizes) - sizes), sizes)
            yield sizes, stored[first + np.arange(len(first))]


def _fill_number_lists(request: Column, source: Source, folder: Path) -> _Facts:
    lists = _Lists(folder / "lists.bin", len(source.order.rows), np.float32)
    for rows, values in source.stream():
        _require(_is_list(values.type) and _is_number(values.type.value_type), request, values, "lists of numbers")
        sizes, flat, parents = _flatten(values)
        numbers = flat.cast(pa.float32()).to_numpy()
        _require_range(numbers, rows[parents], request, source)
        lists.add(rows, sizes, numbers)
    _write_lists(folder, lists.blocks(), np.float32)
    return _Facts(dtype="float32", fill=0.0)


def _fill_labels(request: Column, source: Source, folder: Path) -> _Facts:
    """Write lists of labels, or of a column that is to have one label the first: integers as they are; texts numbered from the most
    frequent, ties in alphabetical order, each once, rare ones left out."""
    vocabulary = _Vocabulary()
    dtype: npt.DTypeLike = np.int64
    lists = _Lists(folder / "lists.bin", len(source.order.rows), dtype)
    for rows, values in source.stream():
        sizes, flat, parents = _flatten(values)
        if is_text(flat.type):
            own, parents = vocabulary.number(flat, parents)
            sizes = np.bincount(parents, minlength=len(values))
        else:
            own = _integers(request, flat)
        lists.add(rows, sizes, own)
    blocks = lists.blocks()
    names: list[str] = []
    if len(vocabulary.counts):
        dtype = np.int32
        names, numbers = vocabulary.rank(request)
        blocks = (_renumber(sizes, numbers[values]) for sizes, values in blocks)
    if request.kind == "label":
        largest = _write_first(folder, blocks, len(source.order.rows))
        return _Facts(num_labels=largest + 1, label_names=tuple(names))
    largest = _write_lists(folder, blocks, dtype)
    return _Facts(dtype=np.dtype(dtype).name, fill=-1.0, num_labels=largest + 1, label_names=tuple(names))


class _Vocabulary:
    """Numbers texts as they come and counts the rows that have them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.counts = np.zeros(0, dtype=np.int64)

    def number(self, texts: pa.Array, parents: Indices) -> tuple[Indices, Indices]:
        """Return the numbers of the texts and the lists they are of, each once per list."""
        encoded = texts.dictionary_encode()
        words = encoded.dictionary.to_pylist()
        numbers = np.array([self._numbers.setdefault(word, len(self._numbers)) for word in words], dtype=np.int64)
        self.counts = np.pad(self.counts, (0, len(self._numbers) - len(self.counts)))
        own = encoded.indices.to_numpy().astype(np.int64)
        firsts = np.sort(np.unique(parents * max(1, len(words)) + own, return_index=True)[1])
        self.counts[numbers] += np.bincount(own[firsts], minlength=len(words))
        return numbers[own[firsts]], parents[firsts]

    def rank(self, request: Column) -> tuple[list[str], Indices]:
        """Return the texts that are frequent enough, most frequent first, and for each number the place among them, -1 for the rare."""
        counts = self.counts.tolist()
        kept = [text for text, number in self._numbers.items() if counts[number] >= request.min_count]
        if not kept:
            raise InputError(f"no label of column {request.name!r} is on {request.min_count} samples; lower min_count")
        names = sorted(kept, key=lambda text: (-counts[self._numbers[text]], text))
        places = np.full(len(self.counts), -1, dtype=np.int64)
        places[[self._numbers[text] for text in names]] = np.arange(len(names))
        return names, places


def _integers(request: Column, flat: pa.Array) -> Indices:
    if pa.types.is_null(flat.type):
        return np.zeros(0, dtype=np.int64)
    is_whole = pa.types.is_integer(flat.type) or pa.types.is_boolean(flat.type)
    _require(is_whole, request, flat[0].as_py() if len(flat) else flat, "integers or texts")
    found: Indices = flat.cast(pa.int64()).to_numpy()
    if found.min(initial=0) < 0:
        raise InputError(f"column {request.name!r} has the label {found.min()}; labels are 0 or more")
    return found


def _renumber(sizes: Indices, numbers: Indices) -> tuple[Indices, Indices]:
    """Return lists without those of their numbers that are -1."""
    parents = np.repeat(np.arange(len(sizes)), sizes)
    is_kept = numbers >= 0
    return np.bincount(parents[is_kept], minlength=len(sizes)), numbers[is_kept]


def _write_lists(folder: Path, blocks: Iterator[tuple[Indices, npt.NDArray[Any]]], dtype: npt.DTypeLike) -> int:
    """Write lists and return the largest whole number of them, -1 for none."""
    ends, largest = [np.zeros(1, dtype=np.int64)], -1
    with (folder / _LIST_VALUES_FILE).open("wb") as file:
        for sizes, values in blocks:
            ends.append(ends[-1][-1] + np.cumsum(sizes))
            file.write(np.ascontiguousarray(values, dtype=dtype).data)
            largest = max(largest, int(values.max(initial=-1)))
    np.save(folder / _ENDS_FILE, np.concatenate(ends))
    return largest


def _write_first(folder: Path, blocks: Iterator[tuple[Indices, Indices]], num_rows: int) -> int:
    """Write the first number of each list, -1 where it is empty, and return the largest."""
    array = np.lib.format.open_memmap(folder / _VALUES_FILE, "w+", np.int64, (num_rows,))
    start, largest = 0, -1
    for sizes, values in blocks:
        part = np.full(len(sizes), -1, dtype=np.int64)
        part[sizes > 0] = values[(np.cumsum(sizes) - sizes)[sizes > 0]]
        array[start : start + len(sizes)] = part
        start += len(sizes)
        largest = max(largest, int(part.max(initial=-1)))
    return largest


def _flatten(values: pa.Array) -> tuple[Indices, pa.Array, Indices]:
    """Return how many elements each list has, the elements and the lists they are of; nulls are left out, and a value alone is a list."""
    if _is_list(values.type):
        flat, parents = values.flatten(), pc.list_parent_indices(values).to_numpy()
        is_valid = flat.is_valid().to_numpy(zero_copy_only=False)
        flat, parents = flat.drop_null(), parents[is_valid].astype(np.int64)
    else:
        flat, parents = values.drop_null(), np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    return np.bincount(parents, minlength=len(values)), flat, parents


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _require(is_right: bool, request: Column, found: object, wanted: str) -> None:
    if not is_right:
        what = found.type if isinstance(found, pa.Array) else repr(found)
        raise InputError(f"column {request.name!r} must hold {wanted}, it holds {what}")


_FILLERS: Mapping[str, _Filler] = {
    "number": _fill_numbers,
    "numbers": _fill_number_lists,
    "vector": _fill_vectors,
    "label": _fill_labels,
    "labels": _fill_labels,
    "uid": _fill_partners,
}
