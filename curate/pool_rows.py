"""The rows of a pool-wide operator's relation, streamed, and what to say of those that cannot take part."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from schemas.sample import STATUS_SUCCESS

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

BATCH_ROWS = 65_536
# What a query calls the relation.
EVERYTHING = "everything"


def stream(pool: "DuckDBPyRelation", columns: str, *, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield columns (SQL over the relation's) of every row in pool order."""
    return stream_query(pool, f"SELECT {columns} FROM {EVERYTHING} ORDER BY shard, row", batch_rows=batch_rows)


def stream_query(pool: "DuckDBPyRelation", query: str, *, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield the result of a SELECT FROM everything."""
    rows = pool.query(EVERYTHING, query)
    assert rows is not None, "a SELECT gives a relation"
    yield from rows.to_arrow_reader(batch_rows)


def missing_errors(batch: pa.RecordBatch, is_missing: np.ndarray, what: str) -> pa.Array:
    """Return why rows lack `what`, null for the others; `batch` has status and error_message."""
    reasons = [
        f"no {what}" if status == STATUS_SUCCESS else f"no image: {message or status}"
        for status, message in zip(
            batch.column("status").to_pylist(), batch.column("error_message").to_pylist(), strict=True
        )
    ]
    return pa.array(reasons, pa.string(), mask=~is_missing)


def draw_sql(seed: int) -> str:
    """Return SQL of a 64-bit number that is even over rows, and a function of seed and uid; `to_uniform` makes a draw of it."""
    return f"md5_number_lower('{seed}:' || uid)"


def to_uniform(numbers: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers as draws from [0, 1)."""
    return np.asarray((numbers.astype(np.uint64) >> np.uint64(11)) * 2.0**-53)
