"""Exact copies: of the picture's bytes, of the caption, of both."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from curate.operator import PoolOperator
from schemas.sample import STATUS_SUCCESS

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_BATCH_ROWS = 65_536
# What must be equal, by the prefix of its columns.
_KEYS = {"image": "sha256", "caption": "alt_text", "pair": "sha256, alt_text"}
# A lone caption is nobody's copy only where there is one: a missing caption is not a caption that many rows share.
_HAS_KEY = {
    "image": "sha256 IS NOT NULL",
    "caption": "coalesce(alt_text, '') <> ''",
    "pair": "sha256 IS NOT NULL AND coalesce(alt_text, '') <> ''",
}


@dataclass(frozen=True, kw_only=True)
class ExactDedup(PoolOperator):
    """Copies within the pool, by picture (sha256 of the downloaded bytes), by caption (exact text), and by both.

    For each of `image`, `caption` and `pair`:

    <subject>_duplicate_group   the smallest uid among the copies: equal for copies, different for all else
    <subject>_num_copies        rows that share it, this one included, 1 and up
    is_<subject>_duplicate      false for the row that gave the group its name, true for the others: `NOT is_pair_duplicate` keeps one
                                of each

    Only rows with a picture take part; the others are null with an error. A row without a caption is nobody's copy by caption or pair.
    About 3 s per million rows; spills to disk where memory does not suffice.
    """

    name = "exact_dedup"
    version = 1
    reads = ("sha256", "alt_text", "status", "error_message")
    writes = pa.schema([
        field
        for subject in _KEYS
        for field in (
            pa.field(f"is_{subject}_duplicate", pa.bool_()),
            pa.field(f"{subject}_duplicate_group", pa.string()),
            pa.field(f"{subject}_num_copies", pa.int32()),
        )
    ])

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 SQL does it all
        query = f"SELECT uid, {', '.join(self.writes.names)}, error FROM ({_query()}) ORDER BY shard, row"
        rows = pool.query("everything", query)
        assert rows is not None, "a SELECT gives a relation"
        schema = pa.schema([("uid", pa.string()), *self.writes, ("error", pa.string())])
        for batch in rows.to_arrow_reader(_BATCH_ROWS):
            yield pa.table(batch).cast(schema)


def _query() -> str:
    """Return one SELECT with three windows over the rows that have a picture."""
    parts = []
    for subject, key in _KEYS.items():
        # Rows without the key form a partition each, by their uid.
        partition = f"is_there, CASE WHEN {_HAS_KEY[subject]} THEN '' ELSE uid END, {key}"
        group = f"min(uid) OVER (PARTITION BY {partition})"
        parts += [
            f"CASE WHEN is_there THEN uid <> {group} END AS is_{subject}_duplicate",
            f"CASE WHEN is_there THEN {group} END AS {subject}_duplicate_group",
            f"CASE WHEN is_there THEN count(*) OVER (PARTITION BY {partition}) END AS {subject}_num_copies",
        ]
    rows = f"SELECT *, status = '{STATUS_SUCCESS}' AS is_there FROM everything"
    error = "CASE WHEN NOT is_there THEN 'no image: ' || coalesce(error_message, status) END AS error"
    return f"SELECT shard, row, uid, {', '.join(parts)}, {error} FROM ({rows})"
