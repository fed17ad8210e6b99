"""Pool-wide operators: their rows are checked, cut into shards, and stale with the pool."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from curate.annotate import annotate, parse_operator
from curate.executor import Executor
from curate.operator import Annotate, PoolOperator, ShardOperator
from curate.store import Pool
from schemas.errors import ContractError, InputError
from tests.curate.pool_builder import find_missing
from tests.pool import make_rows, write_shard

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

Change = Callable[[list[pa.Table]], list[pa.Table]]


@dataclass(frozen=True, kw_only=True)
class Rank(PoolOperator):
    """Numbers rows by the length of the caption; `change` spoils what it yields."""

    name = "rank"
    version = 1
    reads = ("alt_text",)
    writes = pa.schema([("rank_x", pa.int64())])

    change: Change | None = field(default=None)

    def identity(self) -> dict[str, Any]:
        return {}

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        query = "SELECT uid, rank() OVER (ORDER BY length(alt_text), uid) AS rank_x FROM p ORDER BY shard, row"
        rows = pool.query("p", query)
        tables = [pa.table(batch) for batch in rows.to_arrow_reader(7)]
        yield from self.change(tables) if self.change else tables


@dataclass(frozen=True, kw_only=True)
class Double(ShardOperator):
    """A row operator that reads a pool-wide one."""

    name = "double"
    version = 1
    reads = ("rank_x",)
    writes = pa.schema([("double_x", pa.int64())])

    def requires(self) -> tuple[Rank, ...]:
        return (Rank(),)

    def load(self) -> Annotate:
        return lambda batch: {"double_x": [2 * value for value in batch.column("rank_x").to_pylist()]}


def read(pool: Pool, label: str, column: str) -> list[list[int]]:
    target = pool.labels()[label]
    paths = [pool.annotation_path(target.operator, target.fingerprint, shard) for shard in pool.shards()]
    return [pool.read_table(path).column(column).to_pylist() for path in paths]


def test_rows_are_cut_into_shards(ray_session: Executor, tiny_pool: Pool) -> None:
    report = annotate(tiny_pool, [Rank()], executor=ray_session)
    ranks = read(tiny_pool, "rank", "rank_x")
    assert [len(part) for part in ranks] == [12, 12]
    assert sorted(rank for part in ranks for rank in part) == list(range(1, 25))
    assert report.operators[0].num_shards == 2


def test_only_missing_shards_are_written(ray_session: Executor, tiny_pool: Pool) -> None:
    annotate(tiny_pool, [Rank()], executor=ray_session)
    before = read(tiny_pool, "rank", "rank_x")
    tiny_pool.remove(tiny_pool.annotation_path("rank", tiny_pool.labels()["rank"].fingerprint, 1))
    report = annotate(tiny_pool, [Rank()], executor=ray_session)
    assert (report.operators[0].num_shards, report.operators[0].num_shards_current) == (1, 1)
    assert read(tiny_pool, "rank", "rank_x") == before


def test_what_reads_them_runs_after_them_and_is_stale_with_them(ray_session: Executor, tiny_pool: Pool) -> None:
    annotate(tiny_pool, [Double()], executor=ray_session)
    assert read(tiny_pool, "double", "double_x") == [
        [2 * n for n in part] for part in read(tiny_pool, "rank", "rank_x")
    ]
    write_shard(tiny_pool, 1, make_rows(3, seed=9))
    # Shard 0 has not changed, but its ranks may have.
    assert find_missing(tiny_pool, [Double()]) == {"rank": [0, 1], "double": [0, 1]}
    annotate(tiny_pool, [Double()], executor=ray_session)
    assert sorted(n for part in read(tiny_pool, "rank", "rank_x") for n in part) == list(range(1, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables[:-1], "rank must yield one row per row of the pool, and ended"),
        (lambda tables: [*tables, tables[0]], "rank must yield one row per row of the pool, got 7 more"),
        (lambda tables: tables[::-1], "rank must yield the pool's rows in pool order"),
        (lambda tables: [table.select(["uid"]) for table in tables], r"must yield \['uid', 'rank_x'\], got"),
        (
            lambda tables: [table.set_column(1, "rank_x", table.column(1).cast(pa.int32())) for table in tables],
            "must yield rank_x as int64, got int32",
        ),
    ],
)
def test_other_rows_are_refused(ray_session: Executor, tiny_pool: Pool, change: Change, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        annotate(tiny_pool, [Rank(change=change)], executor=ray_session)


def test_pictures_are_for_row_operators(ray_session: Executor, tiny_pool: Pool) -> None:
    with pytest.raises(InputError, match="rank is pool-wide and reads 'alt_text'; only row operators see pictures"):
        annotate(tiny_pool, [Rank(bind={"alt_text": "image"})], executor=ray_session)


def test_exact_copies_across_shards(ray_session: Executor, tiny_pool: Pool) -> None:
    write_shard(tiny_pool, 2, make_rows(12, seed=0))
    report = annotate(tiny_pool, [parse_operator("exact_dedup")], executor=ray_session)
    copies = read(tiny_pool, "exact_dedup", "image_num_copies")
    assert copies[0] == copies[2]
    assert copies[0][0] == 4  # twice in each of two shards
    assert report.operators[0].num_errors == 6
