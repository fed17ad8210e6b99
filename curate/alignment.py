"""Annotation files brought into their shards' order, so that tables can be joined by position.

A file whose stored uid digest equals its shard's is used where it lies. One made for other rows is copied into the shard's order by uid,
and one that does not exist is replaced by a file of nulls; both go to a temporary folder.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from curate.fingerprint import pool_digest
from curate.store import LabelTarget, Pool, ShardHeader
from schemas.annotation import UID_COLUMN, AnnotationHeader
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import SHARD_DIGEST_KEY, TAR_LOCATION_KEY, UID_DIGEST_KEY, shard_name

_REMOTE_READERS = 32


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """A label's annotation, one file per shard in pool order; `missing` are the shards without a current one."""

    paths: tuple[str, ...]
    missing: tuple[int, ...]
    parameters: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Footer:
    """A Parquet footer's row count and key-value metadata."""

    num_rows: int
    metadata: Mapping[bytes, bytes]


class Aligner:
    """Finds the files of an annotation for the shards of a pool; copies go to `folder`."""

    def __init__(self, pool: Pool, shards: Sequence[ShardHeader], folder: str) -> None:
        self._pool = pool
        self._shards = shards
        self._folder = folder
        self._pool_digest = pool_digest({header.shard: header.shard_digest for header in shards})
        self._nulls: dict[tuple[str, int], str] = {}

    def schema(self, target: LabelTarget) -> pa.Schema | None:
        """Return the columns of an annotation, or None where it has no file at all."""
        folder = self._pool.annotation_folder(target.operator, target.fingerprint)
        names = self._pool.list_names(folder, ".parquet")
        if not names:
            return None
        with self._pool.open(f"{folder}/{names[0]}") as file:
            return pq.read_schema(file).remove_metadata()

    def align(self, target: LabelTarget) -> LabelFiles:
        """Return the annotation's files, one per shard, every one of them as long as its shard and in its order."""
        schema = self.schema(target)
        if schema is None:
            raise MissingColumnsError(
                f"no annotation of {target.operator} in {self._pool.root}; run\n"
                f"  winnow annotate --pool {self._pool.root} {target.operator}"
            )
        locations = self._locate(target)
        footers = dict(zip(locations, read_footers(self._pool, list(locations.values())), strict=True))
        paths, missing, parameters = [], [], "{}"
        for header in self._shards:
            footer = footers.get(header.shard)
            annotation = AnnotationHeader.from_metadata(footer.metadata) if footer else None
            if footer is None or annotation is None:
                missing.append(header.shard)
                paths.append(self._write_nulls(target, schema, header.num_rows))
                continue
            parameters = annotation.parameters
            if annotation.shard_digest != header.shard_digest or annotation.pool_digest not in ("", self._pool_digest):
                missing.append(header.shard)
            path = locations[header.shard]
            if annotation.uid_digest == header.uid_digest and footer.num_rows == header.num_rows:
                paths.append(self._pool.locate(path))
            else:
                paths.append(self._copy_in_order(target, header, path))
        return LabelFiles(paths=tuple(paths), missing=tuple(missing), parameters=json.loads(parameters or "{}"))

    def _locate(self, target: LabelTarget) -> dict[int, str]:
        folder = self._pool.annotation_folder(target.operator, target.fingerprint)
        present = set(self._pool.list_names(folder, ".parquet"))
        names = {header.shard: f"{shard_name(header.shard)}.parquet" for header in self._shards}
        return {shard: f"{folder}/{name}" for shard, name in names.items() if name in present}

    def _write_nulls(self, target: LabelTarget, schema: pa.Schema, num_rows: int) -> str:
        key = (target.fingerprint, num_rows)
        if key not in self._nulls:
            self._nulls[key] = f"{self._folder}/{target.fingerprint[:12]}-null-{num_rows}.parquet"
            columns = [pa.nulls(num_rows, field.type) for field in schema]
            pq.write_table(pa.table(columns, schema=schema), self._nulls[key])
        return self._nulls[key]

    def _copy_in_order(self, target: LabelTarget, header: ShardHeader, path: str) -> str:
        aligned = f"{self._folder}/{target.fingerprint[:12]}-{shard_name(header.shard)}.parquet"
        shard = self._pool.shard_parquet(header.shard)
        wanted = self._pool.read_table(shard, [UID_COLUMN])[UID_COLUMN].to_pylist()
        table = self._pool.read_table(path)
        rows = {uid: row for row, uid in enumerate(table[UID_COLUMN].to_pylist())}
        if len(rows) != table.num_rows:
            raise InputError(
                f"{self._pool.locate(path)} has the same uid twice, so its rows cannot be aligned; remove it and annotate again"
            )
        taken = table.take(pa.array([rows.get(uid) for uid in wanted], pa.int64()))
        column = taken.schema.get_field_index(UID_COLUMN)
        pq.write_table(taken.set_column(column, UID_COLUMN, pa.array(wanted, pa.string())), aligned)
        return aligned


def read_footers(pool: Pool, paths: Sequence[str]) -> list[Footer]:
    """Read many footers: one after the other on a local disk (0.1 ms each), side by side from an object store."""

    def read(path: str) -> Footer:
        footer = pool.read_footer(path)
        return Footer(num_rows=footer.num_rows, metadata=footer.metadata or {})

    if pool.is_local:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_REMOTE_READERS) as readers:
        return list(readers.map(read, paths))


def shard_header(pool: Pool, shard: int, footer: Footer) -> ShardHeader:
    if SHARD_DIGEST_KEY not in footer.metadata:
        return pool.shard_header(shard)  # raises with the remedy
    return ShardHeader(
        shard=shard,
        num_rows=footer.num_rows,
        shard_digest=footer.metadata[SHARD_DIGEST_KEY].decode(),
        uid_digest=footer.metadata[UID_DIGEST_KEY].decode(),
        tar=footer.metadata.get(TAR_LOCATION_KEY, b"").decode(),
    )
