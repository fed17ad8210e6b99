"""What an export is made of: a dataset, or a selection in its pool. Both are read in ranges of rows, never whole."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.build import find_selection, read_index
from curate.pack import caption_key, read_selected
from curate.store import LabelTarget, Pool, Store
from schemas.dataset import INDEX_FILE, DatasetIndex, ShardEntry
from schemas.errors import InputError, StaleDatasetError
from schemas.sample import STATUS_SUCCESS, shard_name
from schemas.selection import SELECTED_FILE, SELECTION_FILE

_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A dataset's folder and its index."""

    store: Store
    index: DatasetIndex

    @property
    def num_samples(self) -> int:
        """Samples, each counted once."""
        return self.index.num_samples

    @property
    def name(self) -> str:
        """The name of the selection it was built from."""
        return self.index.name

    def identity(self) -> dict[str, object]:
        """Return what an export of this dataset depends on."""
        return {"dataset": self.index.fingerprint, "shards": _digest_shards(self.index.shards)}

    def read(self, entry: ShardEntry, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a shard's sidecar; raises `StaleDatasetError` where it is not the one the index describes."""
        try:
            table = self.store.read_table(entry.parquet, None if columns is None else list(columns))
        except FileNotFoundError as error:
            raise StaleDatasetError(f"{self.store.locate(entry.parquet)} is gone; build the dataset again") from error
        if table.num_rows != entry.num_samples:
            raise StaleDatasetError(
                f"{self.store.locate(entry.parquet)} has {table.num_rows} rows and its index says {entry.num_samples}; build the "
                "dataset again"
            )
        return table

    def weights(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield the uids and weights of the samples, in order."""
        for entry in self.index.shards:
            table = self.read(entry, ["uid", "weight"])
            yield table["uid"].to_pylist(), table["weight"].to_numpy()

    def ranges(self, start: int, stop: int) -> Iterator[tuple[ShardEntry, int, int]]:
        """Yield the shards that hold the rows `start` to `stop` of the dataset, with the range inside each."""
        first = 0
        for entry in self.index.shards:
            low, high = max(start - first, 0), min(stop - first, entry.num_samples)
            if low < high:
                yield entry, low, high
            first += entry.num_samples

    @contextmanager
    def open_tar(self, entry: ShardEntry) -> Iterator[BinaryIO]:
        """Open a shard's tar; raises `StaleDatasetError` where it is gone."""
        with ExitStack() as stack:
            try:
                file = stack.enter_context(self.store.open_seekable(entry.tar))
            except FileNotFoundError as error:
                raise StaleDatasetError(
                    f"{self.store.locate(entry.tar)} is gone; build the dataset again, without --view to have its tars in its own folder"
                ) from error
            yield file


@dataclass(frozen=True, kw_only=True)
class SelectionSource:
    """A selection's folder in its pool, and its selection.json."""

    pool: Pool
    folder: str
    content: Mapping[str, Any]

    @property
    def num_samples(self) -> int:
        """Samples, each counted once."""
        return int(self.content["num_kept"])

    @property
    def name(self) -> str:
        """The selection's name."""
        return str(self.content["name"])

    @property
    def labels(self) -> dict[str, LabelTarget]:
        """What each label means: as when the selection was made, and as the pool says for the others."""
        own = {label: LabelTarget(**target) for label, target in self.content["labels"].items()}
        return {**self.pool.labels(), **own}

    def identity(self) -> dict[str, object]:
        """Return what an export of this selection depends on."""
        return {"selection": self.content["fingerprint"]}

    def weights(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield the uids and weights of the kept samples, in pool order."""
        with self.pool.open(f"{self.folder}/{SELECTED_FILE}") as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=["uid", "weight"]):
                yield batch.column("uid").to_pylist(), batch.column("weight").to_numpy()

    def read(self, start: int, stop: int, columns: Mapping[str, str]) -> pa.Table:
        """Return columns of the pool for the rows `start` to `stop` of the selection, with `uid` and `weight` first.

        `columns` maps a name to a column of the shards' Parquet, by its name there, or to `label.column`. Raises `StaleDatasetError`
        where a row is no longer the sample that was selected.
        """
        selected = read_selected(self.pool, self.folder, start, stop)
        shards = selected["shard"].to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
        parts = [
            self._read_shard(selected.slice(low, high - low), columns)
            for low, high in itertools.pairwise(bounds)
            if low < high
        ]
        return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})

    def _read_shard(self, selected: pa.Table, columns: Mapping[str, str]) -> pa.Table:
        shard, rows = selected["shard"][0].as_py(), selected["row"]
        path = self.pool.shard_parquet(shard)
        own = list(dict.fromkeys(["uid", "status", *(source for source in columns.values() if "." not in source)]))
        names = self.pool.read_footer(path).schema.to_arrow_schema().names
        table = self.pool.read_table(path, [name for name in own if name in names])
        there = table["uid"].take(rows) if max(rows.to_pylist()) < table.num_rows else None
        if there is None or not there.combine_chunks().equals(selected["uid"].combine_chunks()):
            raise StaleDatasetError(
                f"{self.pool.locate(path)} no longer holds the samples of {self.folder} where they were; run `winnow select` again"
            )
        if set(table["status"].take(rows).to_pylist()) != {STATUS_SUCCESS}:
            raise StaleDatasetError(
                f"{self.pool.locate(path)} has lost pictures of {self.folder}; run `winnow select` again"
            )
        found = {"uid": selected["uid"], "weight": selected["weight"]}
        for name, source in columns.items():
            if "." in source:
                found[name] = self._read_annotation(source, shard, table["uid"]).take(rows)
            else:
                found[name] = table[source].take(rows) if source in table.column_names else pa.nulls(len(rows))
        return pa.table(found)

    def _read_annotation(self, source: str, shard: int, uids: pa.ChunkedArray) -> pa.ChunkedArray:
        label, _, column = source.rpartition(".")
        target = self.labels[label]
        path = self.pool.annotation_path(target.operator, target.fingerprint, shard)
        if not self.pool.exists(path):
            raise StaleDatasetError(f"shard {shard_name(shard)} has no annotation {label}; annotate again")
        annotation = self.pool.read_table(path, ["uid", column])
        if annotation["uid"].equals(uids):
            return annotation[column]
        places = {uid: row for row, uid in enumerate(annotation["uid"].to_pylist())}
        return annotation[column].take(pa.array([places.get(uid) for uid in uids.to_pylist()], pa.int64()))


Source = DatasetSource | SelectionSource


def open_source(source: str, pool: str = "") -> Source:
    """Return the dataset or the selection that `source` means: a folder or URL of either, or the name of a selection in `pool`."""
    folder = Store(source)
    if folder.exists(INDEX_FILE):
        return DatasetSource(store=folder, index=read_index(folder))
    if folder.exists(SELECTION_FILE):
        root, _, name = folder.root.rpartition("/selections/")
        return _read_selection(Pool(root), f"selections/{name}")
    if pool:
        opened = Pool(pool)
        return _read_selection(opened, find_selection(opened, source))
    raise InputError(
        f"{source} is neither a dataset (it has no {INDEX_FILE}) nor a selection (it has no {SELECTION_FILE}); give the folder that "
        "`winnow build` or `winnow select` printed, or a selection's name with --pool"
    )


def require_dataset(source: Source, what: str) -> DatasetSource:
    """Return the source, or raise `InputError` with the command that builds a dataset of a selection."""
    if isinstance(source, DatasetSource):
        return source
    name = source.folder.rpartition("/")[2]
    raise InputError(
        f"{what} needs pictures in tars, and {source.folder} is a selection; build it first: "
        f"`winnow build --pool {source.pool.root} --selection {name} --out DIR`"
    )


def require_selection(source: Source, what: str, pool: str = "") -> SelectionSource:
    """Return the selection itself, or the one in `pool` that a dataset was built from: its rows are the dataset's, in the same order."""
    if isinstance(source, SelectionSource):
        return source
    wanted = source.index.selection.get("fingerprint")
    if not pool:
        raise InputError(
            f"{what} reads annotations, which stay in the pool; give --pool DIR as well, or the selection's folder in place of "
            f"{source.store.root}"
        )
    opened = Pool(pool)
    folder = f"selections/{source.index.name}-{str(wanted)[:12]}"
    if not wanted or not opened.exists(f"{folder}/{SELECTION_FILE}"):
        raise InputError(
            f"{source.store.root} was built from {folder.rpartition('/')[2]}, which {opened.locate('selections')} does not hold; give "
            "the pool that it was built from"
        )
    return _read_selection(opened, folder)


def name_columns(sources: Sequence[str]) -> dict[str, str]:
    """Return columns by the names they have in an export, in which dots become underscores and the web text is `caption`.

    Raises InputError where two of them would have one name.
    """
    found: dict[str, str] = {}
    for source in sources:
        name = caption_key(source)
        if found.setdefault(name, source) != source:
            raise InputError(
                f"the columns {found[name]!r} and {source!r} would both be {name!r} in the export; annotate one of them again under "
                "another label"
            )
    return found


def _read_selection(pool: Pool, folder: str) -> SelectionSource:
    content = json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}"))
    if not content["num_kept"]:
        raise InputError(
            f"selection {folder} keeps no rows, so there is nothing to export; loosen its rules and select again"
        )
    return SelectionSource(pool=pool, folder=folder, content=content)


def _digest_shards(shards: Sequence[ShardEntry]) -> str:
    digests = "\n".join(f"{entry.tar_sha256} {entry.parquet_sha256}" for entry in shards)
    return hashlib.sha256(digests.encode()).hexdigest()
