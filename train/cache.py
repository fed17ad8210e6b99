"""The columns of a dataset that training reads, in files that every worker maps into memory instead of holding a copy.

Made once per dataset and set of caption columns from the sidecar Parquets: `shard.npy`, `offset.npy`, `size.npy`, `weight.npy`,
`uid.npy` (16 bytes a sample) and `captions.arrow` (one record batch per shard). `columns/` beside them is of `column_files.py`.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.dataset import DatasetIndex, ShardEntry
from schemas.errors import InputError, StaleDatasetError
from schemas.progress import Progress, SilentProgress
from train.captions import Caption
from train.made_once import make_once, name_folder, read_ahead, removed_folders
from train.uids import UID_BYTES, parse_uids

_FORMAT = 2  # part of the folder's name: raise it when the files change
_NUMBERS = {"shard": np.int32, "offset": np.int64, "size": np.int64, "weight": np.float64}
_READ_AHEAD = 8
_UID_FILE = "uid.npy"


class SampleTable:
    """The mapped columns of one dataset; pickles as its folder's name, so that a worker maps the same pages."""

    def __init__(self, folder: str, columns: Sequence[str]) -> None:
        self.folder = folder
        self.columns = tuple(columns)

    def __reduce__(self) -> "tuple[type[SampleTable], tuple[str, tuple[str, ...]]]":
        return type(self), (self.folder, self.columns)

    @cached_property
    def shard(self) -> npt.NDArray[np.int32]:
        """The shard of each sample, as its position in the index."""
        column: npt.NDArray[np.int32] = self._map("shard")
        return column

    @cached_property
    def offset(self) -> npt.NDArray[np.int64]:
        """The first byte of each image in its tar."""
        column: npt.NDArray[np.int64] = self._map("offset")
        return column

    @cached_property
    def size(self) -> npt.NDArray[np.int64]:
        """The length of each image in bytes."""
        column: npt.NDArray[np.int64] = self._map("size")
        return column

    @cached_property
    def weight(self) -> npt.NDArray[np.float64]:
        """The weight of each sample as the build recorded it."""
        column: npt.NDArray[np.float64] = self._map("weight")
        return column

    @cached_property
    def uid(self) -> npt.NDArray[np.uint8]:
        """The uid of each sample as 16 bytes, shape (num_samples, 16)."""
        column: npt.NDArray[np.uint8] = self._map("uid")
        return column

    def uids(self, indices: npt.NDArray[np.int64]) -> list[str]:
        """Return uids as 32 hex characters."""
        text = self.uid[indices].tobytes().hex()
        return [text[start : start + 2 * UID_BYTES] for start in range(0, len(text), 2 * UID_BYTES)]

    def captions(self, index: int) -> list[Caption]:
        """Return the value of each caption column of one sample."""
        shard = int(self.shard[index])
        batch = self._batches.get(shard)
        if batch is None:
            batch = self._batches[shard] = self._captions.get_batch(shard)
        row = index - int(self._starts[shard])
        return [batch.column(column)[row].as_py() for column in range(len(self.columns))]

    def _map(self, name: str) -> Any:
        # Viewed as a plain array because a memmap's own indexing costs ten times as much.
        return np.load(Path(self.folder) / f"{name}.npy", mmap_mode="r").view(np.ndarray)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.asarray(np.load(Path(self.folder) / "start.npy"))

    @cached_property
    def _captions(self) -> "pa.ipc.RecordBatchFileReader":
        return pa.ipc.open_file(pa.memory_map(str(Path(self.folder) / "captions.arrow")))

    @cached_property
    def _batches(self) -> dict[int, pa.RecordBatch]:
        return {}


def open_table(
    index: DatasetIndex, locations: Sequence[str], columns: Sequence[str], cache: str, progress: Progress | None = None
) -> SampleTable:
    """Return the mapped columns of a dataset, making them in the folder `cache` where they are not there yet.

    `locations` are the sidecars' paths or URLs, one per shard. Several processes may call this at once: one makes the files, the others
    wait for it. What nobody opened for 30 days is removed when another dataset's are made.
    """
    # A sidecar that was changed is read again, and refused then: see `_read_sidecar`.
    target = Path(cache) / name_folder(_FORMAT, index.to_json(), list(columns), list(map(_stamp, locations)))
    bar = progress or SilentProgress()
    try:
        make_once(target, partial(_write, index, locations, columns, bar), mark=_UID_FILE)
    finally:
        bar.close()
    return SampleTable(str(target), columns)


def find_tables(cache: str, uids: Collection[str]) -> list[str]:
    """Return the folders in a folder of mapped columns that hold any of the samples, and what a kill left of such a folder's removal.

    `remove_folder` removes them: they are made again when the dataset is opened.
    """
    wanted = np.array(sorted(bytes.fromhex(uid) for uid in uids), dtype=f"S{UID_BYTES}")
    found = []
    for path in sorted(Path(cache).glob(f"*/{_UID_FILE}")) if len(wanted) else ():
        stored = np.load(path, mmap_mode="r").view(np.ndarray)
        names = np.ascontiguousarray(stored).view(wanted.dtype)[:, 0] if len(stored) else wanted[:0]
        if np.isin(wanted, names).any():
            found.append(str(path.parent))
    return [*found, *removed_folders(cache)]


def _write(
    index: DatasetIndex, locations: Sequence[str], columns: Sequence[str], progress: Progress, folder: Path
) -> None:
    total = index.num_samples
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(total,))
        for name, dtype in _NUMBERS.items()
    }
    uids = np.lib.format.open_memmap(folder / _UID_FILE, mode="w+", dtype=np.uint8, shape=(total, UID_BYTES))
    starts = np.cumsum([0, *(entry.num_samples for entry in index.shards)])
    np.save(folder / "start.npy", starts)
    schema: pa.Schema | None = None
    progress.start("open", total, "samples")
    with pa.OSFile(str(folder / "captions.arrow"), "wb") as file:
        writer = None
        for shard, table in enumerate(_sidecars(index.shards, locations, columns)):
            rows = slice(int(starts[shard]), int(starts[shard + 1]))
            _fill(arrays, uids, rows, shard, table, locations[shard])
            if writer is None or schema is None:
                schema = table.select(list(columns)).schema
                writer = pa.ipc.new_file(file, schema)
            writer.write_batch(_one_batch(table, schema, locations[shard]))
            progress.advance(table.num_rows)
        if writer is not None:
            writer.close()
    for array in (*arrays.values(), uids):
        array.flush()


def _fill(
    arrays: dict[str, np.memmap], uids: np.memmap, rows: slice, shard: int, table: pa.Table, location: str
) -> None:
    for name, column in (("offset", "image_offset"), ("size", "image_bytes"), ("weight", "weight")):
        values = table.column(column)
        if values.null_count:
            raise StaleDatasetError(
                f"{location} has {values.null_count} rows without {column}; build the dataset again"
            )
        arrays[name][rows] = values.to_numpy()
    arrays["shard"][rows] = shard
    uids[rows] = parse_uids(table.column("uid"), location)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with one Arrow type for every way in which Parquet writers spell text and lists of text."""
    for position, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or kind != field.type:
            kind = pa.string()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = pa.list_(pa.string())
        if kind != field.type:
            table = table.set_column(position, field.name, table.column(position).cast(kind))
    return table.replace_schema_metadata(None)


def _one_batch(table: pa.Table, schema: pa.Schema, location: str) -> pa.RecordBatch:
    captions = table.select(schema.names)
    if captions.schema.types != schema.types:
        raise StaleDatasetError(
            f"{location} has captions of types {captions.schema.types}, the first shard {schema.types}; build the dataset again"
        )
    arrays = [column.combine_chunks() for column in captions.columns]
    return pa.record_batch(
        [array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array for array in arrays], schema=schema
    )


def _sidecars(shards: Sequence[ShardEntry], locations: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the sidecars in order, some read ahead."""
    wanted = ["uid", "weight", "image_offset", "image_bytes", *columns]

    def read(place: int) -> pa.Table:
        return _read_sidecar(locations[place], wanted, shards[place])

    return read_ahead(read, range(len(shards)), num_threads=_READ_AHEAD)


def _stamp(location: str) -> list[int]:
    """Return what changes with a local file; of another store's the index must do."""
    try:
        found = Path(location).stat() if location.startswith("/") else None
    except FileNotFoundError:
        found = None
    return [] if found is None else [found.st_size, found.st_mtime_ns]


def _read_sidecar(location: str, columns: Sequence[str], entry: ShardEntry) -> pa.Table:
    """Read some columns of a sidecar, and of a local one every byte, to know that it is what the index means."""
    try:
        with fsspec.open(location, "rb") as file:
            if location.startswith("/"):
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != entry.parquet_sha256:
                    raise StaleDatasetError(
                        f"{location} has sha256 {found}, the index says {entry.parquet_sha256}; build the dataset again, and change weights with "
                        "train.weights"
                    )
                file.seek(0)
            parquet = pq.ParquetFile(file)
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise InputError(f"{location} has no column {missing[0]!r}; build the dataset again with it")
            table = _plain(parquet.read(columns=list(columns)))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise StaleDatasetError(f"{location} cannot be read ({error}); build the dataset again") from error
    if table.num_rows != entry.num_samples:
        raise StaleDatasetError(
            f"{location} has {table.num_rows} samples, the index says {entry.num_samples}; build the dataset again"
        )
    return table
