"""Takes samples out of built datasets, and brings views over a pool's tars up to date with where its members lie now.

A shard's tar goes first and its sidecar second, which until then tells what is to go; `index.json` is last. Readers that come in between
find sizes that the index does not state, and say so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.build import SIZES_FILE, Describe, no_documents
from curate.forget_files import Eraser
from curate.forgotten import is_in
from curate.pack import TAR_BYTES_KEY, TAR_SHA256_KEY, index_members
from curate.store import Pool, Store
from schemas.dataset import INDEX_FILE, DatasetIndex, ShardEntry
from schemas.errors import InputError, WinnowError
from schemas.selection import SELECTION_FILE

_MEMBERS = ("image", "json", "txt")


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """A dataset and its index."""

    store: Store
    index: DatasetIndex

    def sidecars(self) -> Iterator[str]:
        """Yield the paths of the sidecars that are there: a takedown that was killed may have removed some."""
        yield from (entry.parquet for entry in self.index.shards if self.store.exists(entry.parquet))


def find_datasets(folders: Sequence[str]) -> list[DatasetFolder]:
    """Return the datasets in some folders, each a dataset or a folder of datasets; raises InputError where one holds none."""
    found: dict[str, DatasetFolder] = {}
    for folder in folders:
        store = Store(folder)
        paths = [store.root] if store.exists(INDEX_FILE) else _find_below(store)
        if not paths:
            raise InputError(
                f"{folder} holds no dataset (no {INDEX_FILE}, nor in its folders); give what `winnow build` printed"
            )
        for path in paths:
            inner = Store(path)
            text = inner.read_bytes(INDEX_FILE).decode()
            found[path] = DatasetFolder(store=inner, index=DatasetIndex.from_json(text, path=inner.locate(INDEX_FILE)))
    return list(found.values())


def forget_in_dataset(
    eraser: Eraser,
    dataset: DatasetFolder,
    pool: Pool,
    uids: frozenset[str],
    moved: frozenset[str],
    describe: Describe = no_documents,
) -> None:
    """Remove samples from a dataset; `moved` are the tars of the pool, located, whose members may lie elsewhere than a view says.

    `describe` makes the documents beside it anew, as where it was built.
    """
    store, index = dataset.store, dataset.index
    entries, gone = [], list[str]()
    for entry in index.shards:
        kept, lost = _forget_in_shard(eraser, dataset, entry, uids, moved)
        gone += lost
        if kept is not None:
            entries.append(kept)
    if eraser.is_dry:
        if gone or entries != list(index.shards):
            eraser.journal.note(store.locate(INDEX_FILE), gone)
        return
    num_samples = sum(entry.num_samples for entry in entries)
    updated = replace(
        index,
        num_samples=num_samples,
        shards=entries,
        selection=_read_selection(pool, index, num_samples) if num_samples != index.num_samples else index.selection,
    )
    if index.kind != "view":
        sizes = {entry.tar: entry.num_samples for entry in entries}
        eraser.replace(store, SIZES_FILE, gone, (json.dumps(sizes, indent=2) + "\n").encode())
    if updated != index:
        _write_documents(eraser, dataset.store, pool, updated, gone, describe)
    # Last: until now readers find sizes that the index does not state, and from here on a dataset that is whole again.
    eraser.replace(store, INDEX_FILE, gone, updated.to_json().encode())


def _write_documents(
    eraser: Eraser, store: Store, pool: Pool, index: DatasetIndex, gone: Sequence[str], describe: Describe
) -> None:
    folder = _selection_folder(index)
    try:
        documents = describe(pool, folder, store, index) if index.num_samples and pool.exists(folder) else {}
    except WinnowError as error:
        eraser.journal.leave(
            store.root, f"its documents could not be made anew: {error}", "remove them, or build the dataset again"
        )
        return
    for name, data in documents.items():
        eraser.replace(store, name, gone, data)


def _find_below(store: Store) -> list[str]:
    if store.is_local:
        return sorted(str(path.parent) for path in Path(store.root).rglob(INDEX_FILE))
    paths = [str(path) for path in store.filesystem.find(store.root) if path.endswith(f"/{INDEX_FILE}")]
    return [str(store.filesystem.unstrip_protocol(path)).removesuffix(f"/{INDEX_FILE}") for path in sorted(paths)]


def _forget_in_shard(
    eraser: Eraser, dataset: DatasetFolder, entry: ShardEntry, uids: frozenset[str], moved: frozenset[str]
) -> tuple[ShardEntry | None, list[str]]:
    """Return a shard's entry as it is now, None where no sample is left, and the uids of the samples that went."""
    store, is_view = dataset.store, dataset.index.kind == "view"
    if not store.exists(entry.parquet):
        # A takedown that was killed has removed it, and what is left of it goes now.
        if not is_view:
            eraser.remove(store, entry.tar, [])
        return None, []
    table = store.read_table(entry.parquet)
    is_gone = is_in(table["uid"], uids)
    gone = table["uid"].filter(pa.array(is_gone)).to_pylist()
    if not gone and table.num_rows == entry.num_samples and not (is_view and store.locate(entry.tar) in moved):
        return entry, []
    if eraser.is_dry:
        return _plan_shard(eraser, dataset, entry, gone), gone
    if len(gone) == table.num_rows:
        # The sidecar first: a tar without one is a left-over, which the next attempt removes.
        eraser.remove(store, entry.parquet, gone)
        if not is_view:
            eraser.remove(store, entry.tar, gone)
        return None, gone
    if not is_view:
        eraser.tar(store, entry.tar, frozenset(table["key"].filter(pa.array(is_gone)).to_pylist()), gone)
    kept = table.filter(pa.array(~is_gone))
    return _commit_sidecar(eraser, store, entry, kept, gone), gone


def _plan_shard(eraser: Eraser, dataset: DatasetFolder, entry: ShardEntry, gone: Sequence[str]) -> ShardEntry:
    eraser.journal.note(dataset.store.locate(entry.parquet), gone)
    if dataset.index.kind != "view":
        eraser.journal.note(dataset.store.locate(entry.tar), gone)
    return replace(entry, num_samples=entry.num_samples - len(gone), tar_sha256="")


def _commit_sidecar(
    eraser: Eraser, store: Store, entry: ShardEntry, table: pa.Table, gone: Sequence[str]
) -> ShardEntry:
    """Write the sidecar of the samples that stay, with where their members lie in the tar as it is now."""
    with store.open_seekable(entry.tar) as tar:
        members = index_members(tar)
        tar_bytes = tar.seek(0, 2)
    tar_sha256 = store.sha256(entry.tar)
    for kind in _MEMBERS:
        places = [members.get(key, {}).get(kind) for key in table["key"].to_pylist()]
        for name, values in (
            (f"{kind}_offset", [place and place[0].offset for place in places]),
            (f"{kind}_bytes", [place and place[0].size for place in places]),
        ):
            position = table.schema.get_field_index(name)
            table = table.set_column(position, table.schema.field(name), pa.array(values, pa.int64()))
    known: Mapping[bytes, bytes] = table.schema.metadata or {}
    metadata = {**known, TAR_BYTES_KEY: str(tar_bytes).encode(), TAR_SHA256_KEY: tar_sha256.encode()}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    eraser.replace(store, entry.parquet, gone, buffer.getvalue().to_pybytes())
    return replace(
        entry,
        num_samples=table.num_rows,
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        parquet_sha256=store.sha256(entry.parquet),
    )


def _read_selection(pool: Pool, index: DatasetIndex, num_samples: int) -> Mapping[str, object]:
    """Return the selection.json that the index holds, with the counts of now."""
    path = f"{_selection_folder(index)}/{SELECTION_FILE}"
    if pool.exists(path):
        content: dict[str, Any] = json.loads(pool.read_bytes(path))
        if content.get("num_kept") == num_samples:
            return content
    return {**index.selection, "num_kept": num_samples} if index.selection else index.selection


def _selection_folder(index: DatasetIndex) -> str:
    return f"selections/{index.name}-{str(index.selection.get('fingerprint'))[:12]}"
