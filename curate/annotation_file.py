"""Annotation files, written and read piece by piece, so that memory does not grow with the shard."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from curate.columns import Input, Output, as_error_array, count_errors, null_reasons
from curate.fingerprint import canonical_json
from curate.plan import Origin, Planned
from curate.store import Pool, ShardHeader
from schemas.annotation import ERROR_COLUMN, UID_COLUMN, AnnotationHeader, annotation_schema
from schemas.errors import StaleDatasetError

# Rows per row group: fixed, because it is part of the file's bytes.
GROUP_ROWS = 16_384
_COMPRESSION = "zstd"

OriginKey = tuple[str, str, str]


def make_header(planned: Planned, header: ShardHeader, pool_digest: str) -> AnnotationHeader:
    """Return what the file of an operator for a shard says about itself."""
    operator = planned.operator
    return AnnotationHeader(
        operator=operator.name,
        version=str(operator.version),
        fingerprint=planned.fingerprint,
        parameters=canonical_json(operator.identity()),
        shard_digest=header.shard_digest,
        uid_digest=header.uid_digest,
        pool_digest=pool_digest if planned.follows_pool else "",
    )


class AnnotationWriter:
    """Collects rows of one annotation file; use `write_annotation`."""

    def __init__(self, planned: Planned, header: ShardHeader, file: BinaryIO, pool_digest: str) -> None:
        metadata = make_header(planned, header, pool_digest).to_metadata()
        self._schema = annotation_schema(planned.operator.writes).with_metadata(metadata)
        self._writer = pq.ParquetWriter(file, self._schema, compression=_COMPRESSION)
        self._name = planned.operator.name
        self._header = header
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._uids = hashlib.sha256()
        self.num_rows = 0
        self.num_errors = 0

    def add(self, uids: pa.Array, output: Output) -> None:
        """Append the rows of one chunk."""
        arrays = [uids, *(output.columns[name] for name in self._schema.names[1:-1]), as_error_array(output.errors)]
        self.add_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self.num_errors += count_errors(output.errors)

    def add_table(self, table: pa.Table) -> None:
        """Append rows that are in the file's schema already."""
        if table.num_rows == 0:
            return
        text = "\n".join(table.column(UID_COLUMN).to_pylist())
        self._uids.update((text if self.num_rows == 0 else f"\n{text}").encode())
        self.num_rows += table.num_rows
        self._pending.append(table)
        self._num_pending += table.num_rows
        while self._num_pending >= GROUP_ROWS:
            self._flush(GROUP_ROWS)

    def close(self) -> None:
        """Write what is left, after comparing the rows with the shard's: an annotation has its uids in its order, or is not committed."""
        if self.num_rows != self._header.num_rows or self._uids.hexdigest() != self._header.uid_digest:
            raise StaleDatasetError(
                f"{self._name} has {self.num_rows} rows for shard {self._header.shard} of {self._header.num_rows}, or other uids than "
                f"it: the shard's Parquet does not match its own header; fetch or import that shard again"
            )
        if self._num_pending or self.num_rows == 0:
            self._flush(self._num_pending)
        self._writer.close()

    def release(self) -> None:
        """End the Parquet writer while its file is still open, in a file that will be thrown away too; does nothing after `close`."""
        if self._writer.is_open:
            self._writer.close()

    def _flush(self, num_rows: int) -> None:
        table = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
        self._writer.write_table(table.slice(0, num_rows), row_group_size=GROUP_ROWS)
        rest = table.slice(num_rows)
        self._pending = [rest] if rest.num_rows else []
        self._num_pending = rest.num_rows


@contextmanager
def write_annotations(
    pool: Pool, plan: Iterable[Planned], header: ShardHeader, pool_digest: str
) -> Iterator[dict[str, AnnotationWriter]]:
    """Yield a writer for each operator by fingerprint; on leaving well every file is committed, on an exception none."""
    with ExitStack() as stack:
        writers = {}
        for planned in plan:
            path = pool.annotation_path(planned.operator.name, planned.fingerprint, header.shard)
            file = stack.enter_context(pool.commit(path))
            writers[planned.fingerprint] = AnnotationWriter(planned, header, file, pool_digest)
        try:
            yield writers
            for writer in writers.values():
                writer.close()
        finally:
            for writer in writers.values():
                writer.release()


class StoredColumns:
    """Columns of committed annotations of one shard, read alongside its rows."""

    def __init__(self, pool: Pool, header: ShardHeader, origins: Sequence[Origin]) -> None:
        self._stack = ExitStack()
        by_file: dict[tuple[str, str], list[str]] = {}
        for origin in origins:
            by_file.setdefault((origin.operator, origin.fingerprint), []).append(origin.column)
        self._cursors = {
            key: _Cursor(self._open(pool, header, *key), [*dict.fromkeys(columns), ERROR_COLUMN])
            for key, columns in by_file.items()
        }

    def __enter__(self) -> "StoredColumns":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, num_rows: int) -> dict[OriginKey, Input]:
        """Return the next rows of every column."""
        found = {}
        for (_, fingerprint), cursor in self._cursors.items():
            table = cursor.take(num_rows)
            reasons = null_reasons(table.column(ERROR_COLUMN))
            for name in table.column_names[:-1]:
                found["annotation", fingerprint, name] = Input.from_column(table.column(name), reasons)
        return found

    def _open(self, pool: Pool, header: ShardHeader, operator: str, fingerprint: str) -> pq.ParquetFile:
        path = pool.annotation_path(operator, fingerprint, header.shard)
        file = pq.ParquetFile(self._stack.enter_context(pool.open(path)))
        stored = AnnotationHeader.from_metadata(file.schema_arrow.metadata)
        if stored is None or stored.uid_digest != header.uid_digest or file.metadata.num_rows != header.num_rows:
            raise StaleDatasetError(
                f"{pool.locate(path)} is not about shard {header.shard} as it is now; annotate again"
            )
        return file


class _Cursor:
    """Reads a Parquet file in pieces of the sizes asked for."""

    def __init__(self, file: pq.ParquetFile, columns: list[str]) -> None:
        self._schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        self._batches = file.iter_batches(batch_size=GROUP_ROWS, columns=columns)
        self._rest = self._schema.empty_table()

    def take(self, num_rows: int) -> pa.Table:
        while self._rest.num_rows < num_rows:
            block = pa.table(next(self._batches)).select(self._schema.names).cast(self._schema)
            self._rest = pa.concat_tables([self._rest, block])
        table, self._rest = self._rest.slice(0, num_rows), self._rest.slice(num_rows)
        return table
