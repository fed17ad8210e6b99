"""Annotation files brought into their shards' order, so that tables can be joined by position.

A file whose stored uid digest equals its shard's is used where it lies. One made for other rows is copied into the shard's order by uid,
and one that does not exist is replaced by a file of nulls; both go to a temporary folder.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from curate.fingerprint import pool_digest
from curate.parse import find_class
from curate.store import LabelTarget, Pool, ShardHeader
from schemas.annotation import HEADER_PREFIX, UID_COLUMN, AnnotationHeader
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import SHARD_DIGEST_KEY, TAR_LOCATION_KEY, UID_DIGEST_KEY, shard_name

_REMOTE_READERS = 32
# Footers of annotations are smaller than this, so one read gets them.
_TAIL_BYTES = 16 << 10


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

    def align(self, label: str, target: LabelTarget) -> LabelFiles:
        """Return the annotation's files, one per shard, every one of them as long as its shard and in its order."""
        schema = self.schema(target)
        if schema is None:
            command = annotate_command(self._pool, label, target, {})
            raise MissingColumnsError(f"{label} has no annotation in {self._pool.root} yet; run\n  {command}")
        locations = self._locate(target)
        headers = dict(zip(locations, read_headers(self._pool, list(locations.values())), strict=True))
        paths, missing, parameters = [], [], "{}"
        for header in self._shards:
            annotation = headers.get(header.shard)
            if annotation is None:
                missing.append(header.shard)
                paths.append(self._write_nulls(target, schema, header.num_rows))
                continue
            parameters = annotation.parameters
            if annotation.shard_digest != header.shard_digest or annotation.pool_digest not in ("", self._pool_digest):
                missing.append(header.shard)
            path = locations[header.shard]
            if annotation.uid_digest == header.uid_digest:
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


def read_headers(pool: Pool, paths: Sequence[str]) -> list[AnnotationHeader | None]:
    """Read the headers of many annotations; on a local disk in 20 us each, because only their few keys are looked at."""
    if not pool.is_local:
        return [AnnotationHeader.from_metadata(footer.metadata) for footer in read_footers(pool, paths)]
    found = []
    for path in paths:
        header = _find_header(_read_tail(pool.locate(path)))
        # Whatever looks unfamiliar is read the slow way.
        found.append(header or AnnotationHeader.from_metadata(pool.read_footer(path).metadata))
    return found


def lacking_shards(pool: Pool, target: LabelTarget, headers: Mapping[int, ShardHeader]) -> list[int]:
    """Return the shards of a pool (all its `headers`) without a current annotation, whether it follows the whole pool or not."""
    lacking = pool.missing(target.operator, target.fingerprint, headers)
    if lacking:  # an annotation that follows the whole pool says of which one it is
        digest = pool_digest({shard: header.shard_digest for shard, header in headers.items()})
        left = {shard: headers[shard] for shard in lacking}
        lacking = pool.missing(target.operator, target.fingerprint, left, digest)
    return lacking


def annotate_command(pool: Pool, label: str, target: LabelTarget, parameters: Mapping[str, object]) -> str:
    """Return the command that completes an annotation; `...` stands for what its files do not tell, such as a model's folder."""
    values: dict[str, str] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            values[key] = str(value.get("model", "..."))
            values |= {"revision": str(value["revision"])} if value.get("revision") else {}
        elif value not in (None, ""):
            values[key] = value if isinstance(value, str) else json.dumps(value)
    with suppress(InputError):  # a user's own operator is a file that need not be here
        for field in fields(find_class(target.operator)):
            if field.default is MISSING and field.default_factory is MISSING:
                values.setdefault(field.name, "...")
    if label != target.operator:
        values["label"] = label
    settings = ",".join(f"{key}={value}" for key, value in values.items())
    call = f"{target.operator}:{settings}" if settings else target.operator
    return f"winnow annotate --pool {shlex.quote(pool.root)} {shlex.quote(call)}"


def shard_header(pool: Pool, shard: int, footer: Footer) -> ShardHeader:
    """Return a shard's header from a footer that has been read."""
    if SHARD_DIGEST_KEY not in footer.metadata:
        return pool.shard_header(shard)  # raises with the remedy
    return ShardHeader(
        shard=shard,
        num_rows=footer.num_rows,
        shard_digest=footer.metadata[SHARD_DIGEST_KEY].decode(),
        uid_digest=footer.metadata[UID_DIGEST_KEY].decode(),
        tar=footer.metadata.get(TAR_LOCATION_KEY, b"").decode(),
    )


def _read_tail(path: str) -> bytes:
    """Return the footer of a local Parquet file, undecoded."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        footer_bytes = int.from_bytes(tail[-8:-4], "little")
        if footer_bytes + 8 > len(tail):
            tail = os.pread(descriptor, footer_bytes + 8, max(0, size - footer_bytes - 8))
    finally:
        os.close(descriptor)
    return tail[-8 - footer_bytes : -8] if tail.endswith(b"PAR1") else b""


def _find_header(footer: bytes) -> AnnotationHeader | None:
    """Find the header's keys in a Thrift-encoded footer: each is followed by 0x18, its value's length (a varint) and the value.

    The last occurrence counts: the key-value pairs come after the statistics, which hold whatever a hostile caption says.
    """
    found = {}
    for field in fields(AnnotationHeader):
        key = f"{HEADER_PREFIX}{field.name}".encode()
        start = footer.rfind(bytes([0x18, len(key)]) + key + b"\x18")
        if start < 0:
            return None
        place = start + len(key) + 3
        length = shift = 0
        while place < len(footer):
            byte = footer[place]
            length |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                break
        value = footer[place : place + length]
        if len(value) != length:
            return None
        found[key] = value
    return AnnotationHeader.from_metadata(found)
