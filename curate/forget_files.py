"""Rewrites files without what was taken down, and notes each change before it happens.

A file is rewritten beside itself and renamed, so it is whole at every instant. What was changed is noted before the rename: a takedown
that was killed knows, when it goes on, what a file was before.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.store import Pool, Store
from curate.tar import BLOCK, Member, TarWriter, index_tar, split_name

_CHUNK_BYTES = 8 << 20
_ARROW_SCHEMA_KEY = b"ARROW:schema"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What was done to a file; `sha256_after` is empty where it was removed, both are where nothing was done yet (a dry run)."""

    path: str
    uids: Sequence[str]
    sha256_before: str = ""
    sha256_after: str = ""


@dataclass(frozen=True, kw_only=True)
class Left:
    """What could not be done, and what its owner can do."""

    path: str
    reason: str
    remedy: str


class Journal:
    """The changes of one takedown: a small file each in `folder` of the pool, until the receipt holds all of them."""

    def __init__(self, pool: Pool, folder: str, *, is_dry: bool = False) -> None:
        self.is_dry = is_dry
        self.left: list[Left] = []
        self._pool = pool
        self._folder = folder
        self._changes: dict[str, Change] = {}
        for name in [] if is_dry else pool.list_names(folder, ".json"):
            change = Change(**json.loads(pool.read_bytes(f"{folder}/{name}")))
            self._changes[change.path] = change

    @property
    def changes(self) -> list[Change]:
        """What was done so far, or would be, in the order of the paths."""
        return [self._changes[path] for path in sorted(self._changes)]

    def note(self, location: str, uids: Sequence[str], before: str = "", after: str = "") -> None:
        """Keep what is about to be done to a file."""
        path = location.removeprefix(f"{self._pool.root}/")
        known = self._changes.get(path)
        # Killed between the note and the rename, or changed twice: what the file was at first counts.
        first = known.sha256_before if known and before else before
        together = dict.fromkeys([*(known.uids if known else ()), *uids])
        change = Change(path=path, uids=list(together), sha256_before=first or before, sha256_after=after)
        self._changes[path] = change
        if not self.is_dry:
            name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:24]
            self._pool.commit_json(f"{self._folder}/{name}.json", asdict(change))

    def leave(self, path: str, reason: str, remedy: str) -> None:
        """Say what could not be done."""
        entry = Left(path=path, reason=reason, remedy=remedy)
        if entry not in self.left:
            self.left.append(entry)

    def close(self) -> None:
        """Remove the notes."""
        self._pool.remove_abandoned(self._folder)
        for name in self._pool.list_names(self._folder, ".json"):
            self._pool.remove(f"{self._folder}/{name}")


class Eraser:
    """Rewrites files, or in a dry run only notes which ones it would."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    @property
    def is_dry(self) -> bool:
        """Whether nothing is to be changed."""
        return self.journal.is_dry

    def parquet(
        self,
        store: Store,
        path: str,
        columns: Sequence[str],
        find: Callable[[pa.Table], Mask],
        change: Callable[[pa.Table, Mask], pa.Table],
    ) -> list[str]:
        """Rewrite the rows of a Parquet file that `find` finds by `columns` (uid first); return their uids, none where nothing was done.

        Row groups, schema and metadata stay as they are; a row group at a time is in memory.
        """
        with store.open(path) as file:
            parquet = pq.ParquetFile(file)
            groups = range(parquet.num_row_groups)
            found = [parquet.read_row_group(group, columns=list(columns)) for group in groups]
            masks = [find(table) for table in found]
            uids = [
                uid
                for table, mask in zip(found, masks, strict=True)
                for uid in table["uid"].filter(pa.array(mask)).to_pylist()
            ]
            if not uids:
                return []
            del found

            def write(out: "HashingFile") -> None:
                has_schema = _ARROW_SCHEMA_KEY in (parquet.metadata.metadata or {})
                schema = parquet.schema_arrow
                with pq.ParquetWriter(out, schema, compression="zstd", store_schema=has_schema) as writer:
                    num_rows = 0
                    for group in groups:
                        table = change(parquet.read_row_group(group), masks[group])
                        num_rows += table.num_rows
                        if table.num_rows:
                            writer.write_table(table, row_group_size=table.num_rows)
                    if not num_rows:
                        writer.write_table(schema.empty_table())

            self.rewrite(store, path, uids, write)
        return uids

    def tar(self, store: Store, path: str, keys: frozenset[str], uids: Sequence[str]) -> bool:
        """Rewrite a tar without the members of `keys`, the others byte for byte; tell whether it held any."""
        if not keys:
            return False
        with store.open_seekable(path) as file:
            members = list(index_tar(file))
            kept = [member for member in members if keys.isdisjoint(split_name(member.name)[0])]
            if len(kept) == len(members):
                return False
            self.rewrite(store, path, uids, lambda out: _copy_members(file, members, kept, out))
        return True

    def replace(self, store: Store, path: str, uids: Sequence[str], data: bytes) -> None:
        """Rewrite a small file, unless it holds these bytes already."""
        if not store.exists(path) or store.read_bytes(path) != data:
            self.rewrite(store, path, uids, lambda out: out.write_all(data))

    def rewrite(self, store: Store, path: str, uids: Sequence[str], write: Callable[["HashingFile"], object]) -> None:
        """Replace a file by what `write` writes."""
        if self.is_dry:
            self.journal.note(store.locate(path), uids)
            return
        store.remove_abandoned(path.rpartition("/")[0])
        before = store.sha256(path) if store.exists(path) else ""
        with store.commit(path) as file:
            out = HashingFile(file)
            write(out)
            self.journal.note(store.locate(path), uids, before, out.digest.hexdigest())

    def remove(self, store: Store, path: str, uids: Sequence[str]) -> None:
        """Remove a file if it exists."""
        if store.exists(path):
            self.journal.note(store.locate(path), uids, "" if self.is_dry else store.sha256(path))
            if not self.is_dry:
                store.remove(path)


class HashingFile(io.RawIOBase):
    """Digests what is written on its way to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        """Say that it is written to."""
        return True

    def write(self, data: Any) -> int:
        """Append bytes."""
        self.digest.update(data)
        self._file.write(data)
        num_bytes = memoryview(data).nbytes
        self._position += num_bytes
        return num_bytes

    def write_all(self, data: bytes) -> None:
        """Append bytes."""
        self.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._position


def empty_rows(table: pa.Table, is_gone: Mask, values: Mapping[str, object]) -> pa.Table:
    """Return a table whose gone rows hold nothing but what `values` says; a column that it maps to itself (...) stays."""
    emptied = table.take(pa.array(np.arange(table.num_rows), mask=is_gone))
    hidden = pa.array(is_gone)
    columns = []
    for field in table.schema:
        value = values.get(field.name)
        if value is ...:
            columns.append(table[field.name])
        elif value is None:
            columns.append(emptied[field.name])
        else:
            filled = pa.array([value if gone else None for gone in is_gone.tolist()], field.type)
            columns.append(_choose(hidden, filled, emptied[field.name]))
    return pa.table(columns, schema=table.schema)


def _choose(hidden: pa.Array, filled: pa.Array, others: pa.ChunkedArray) -> pa.Array:
    both = pa.concat_arrays([*(chunk for chunk in others.chunks), filled])
    rows = np.arange(len(hidden)) + np.where(np.asarray(hidden), len(hidden), 0)
    return both.take(pa.array(rows))


def _copy_members(file: BinaryIO, members: Sequence[Member], kept: Sequence[Member], out: HashingFile) -> None:
    """Copy members with their headers; what stands before a header (a long name) belongs to its member."""
    wanted = {member.offset for member in kept}
    start = 0
    for member in members:
        end = member.offset + member.size + -member.size % BLOCK
        if member.offset in wanted:
            file.seek(start)
            left = end - start
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                out.write(chunk)
                left -= len(chunk)
        start = end
    writer = TarWriter(out)  # type: ignore[arg-type]  # it only writes
    writer.position = out.tell()
    writer.close()
