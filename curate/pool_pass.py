"""Pool-wide operators: one relation over every row in, one annotation file per shard out."""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from curate.annotation_file import write_annotations
from curate.catalog import Catalog
from curate.executor import Executor
from curate.operator import PoolOperator
from curate.plan import Planned
from curate.pool_work import PoolWork
from curate.store import Pool, ShardHeader
from schemas.annotation import ERROR_COLUMN, UID_COLUMN, annotation_schema
from schemas.errors import ContractError, InputError, StaleDatasetError
from schemas.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PoolReport:
    """What a pool-wide operator did: error rows by shard, for the shards that it wrote."""

    num_errors: dict[int, int]
    seconds: float


def annotate_pool(
    pool: Pool,
    planned: Planned,
    headers: Mapping[int, ShardHeader],
    missing: list[int],
    pool_digest: str,
    executor: Executor,
    progress: Progress,
) -> PoolReport:
    """Run one pool-wide operator over every row and commit the shards in `missing`; the others have the same rows already."""
    operator = planned.operator
    assert isinstance(operator, PoolOperator)
    pictures = sorted(
        column for column, origin in planned.origins.items() if origin.kind not in ("sample", "annotation")
    )
    if pictures:
        raise InputError(f"{operator.name} is pool-wide and reads {pictures[0]!r}; only row operators see pictures")
    started = time.monotonic()
    errors: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="winnow-pool-") as folder, Catalog(pool) as catalog:
        relation = catalog.pool_relation({column: origin.sql_name for column, origin in planned.origins.items()})
        rows = _Rows(planned, operator.annotate(relation, PoolWork(Path(folder), executor)))
        for shard in sorted(headers):
            header = headers[shard]
            if shard in missing:
                errors[shard] = _write_shard(pool, planned, header, rows, pool_digest)
            else:
                rows.skip(header.num_rows)
            progress.advance(header.num_rows, operator=operator.sql_name)
        rows.finish()
    seconds = time.monotonic() - started
    logger.info("annotated operator=%s shards=%d seconds=%.1f", operator.sql_name, len(missing), seconds)
    return PoolReport(num_errors=errors, seconds=seconds)


def _write_shard(pool: Pool, planned: Planned, header: ShardHeader, rows: "_Rows", pool_digest: str) -> int:
    num_errors = 0
    try:
        with write_annotations(pool, [planned], header, pool_digest) as writers:
            for table in rows.take(header.num_rows):
                writers[planned.fingerprint].add_table(table)
                num_errors += table.num_rows - table.column(ERROR_COLUMN).null_count
    except StaleDatasetError as error:
        raise ContractError(
            f"{planned.operator.name} must yield the pool's rows in pool order (ORDER BY shard, row); shard {header.shard} got other "
            f"rows"
        ) from error
    return num_errors


class _Rows:
    """The tables an operator yields, checked and cut to the lengths asked for."""

    def __init__(self, planned: Planned, tables: Iterator[pa.Table]) -> None:
        self._operator = planned.operator
        self._schema = annotation_schema(planned.operator.writes)
        self._tables = tables
        self._rest = self._schema.empty_table()

    def take(self, num_rows: int) -> Iterator[pa.Table]:
        while num_rows:
            while self._rest.num_rows == 0:
                self._rest = self._next(num_rows)
            part, self._rest = self._rest.slice(0, num_rows), self._rest.slice(num_rows)
            num_rows -= part.num_rows
            yield part

    def skip(self, num_rows: int) -> None:
        for _ in self.take(num_rows):
            pass

    def finish(self) -> None:
        """Refuse rows beyond the last."""
        extra = self._rest.num_rows + sum(table.num_rows for table in self._tables)
        if extra:
            raise ContractError(f"{self._operator.name} must yield one row per row of the pool, got {extra} more")

    def _next(self, num_wanted: int) -> pa.Table:
        table = next(self._tables, None)
        if table is None:
            raise ContractError(
                f"{self._operator.name} must yield one row per row of the pool, and ended {num_wanted} rows before a shard's end"
            )
        if ERROR_COLUMN not in table.column_names:
            table = table.append_column(ERROR_COLUMN, pa.nulls(table.num_rows, pa.string()))
        if sorted(table.column_names) != sorted(self._schema.names):
            raise ContractError(
                f"{self._operator.name} must yield {[UID_COLUMN, *self._operator.writes.names]}, got {table.column_names}"
            )
        table = table.select(self._schema.names)
        for field in self._schema:
            if table.schema.field(field.name).type != field.type:
                raise ContractError(
                    f"{self._operator.name} must yield {field.name} as {field.type}, got {table.schema.field(field.name).type}"
                )
        return table.cast(self._schema)
