"""`winnow retry`: fetch again the rows of a pool that failed for a reason that may have passed, and only those.

A shard that gains images gets a new tar, `_stats.json` and Parquet, in this order. Between the first and the last its tar holds more
than its Parquet tells, never less, so a kill in between loses nothing: the old Parquet says which members count, and the rows are
fetched once more.
"""

import logging
import time
from collections.abc import Sequence

import pyarrow as pa

from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.download import DownloadReport, clean_up, make_report, make_task, run_shards, share_connections
from curate.fetch.errors import is_temporary
from curate.fetch.ingest import Plan, check_settings, load_plans
from curate.fetch.refusal import Refusal
from curate.fetch.shard import ProgressReporter, ShardTask, fetch_rows
from curate.fetch.transform import Transformed
from curate.fetch.writer import RESULT_COLUMNS, ShardCounts, Spool, write_shard
from curate.store import Pool
from curate.tar import index_tar
from schemas.errors import InputError, StaleDatasetError
from schemas.progress import Progress
from schemas.sample import shard_name

logger = logging.getLogger(__name__)


def retry(pool: Pool, config: DownloadConfig, *, executor: Executor, progress: Progress) -> DownloadReport:
    """Fetch temporary failures again; rows that succeeded keep their bytes, rows that fail again keep the newer message.

    The report counts the rows fetched again. Imported shards are left alone: their tars are not the pool's.
    """
    plans = load_plans(pool)
    if not plans:
        raise InputError(
            f"{pool.root} holds nothing that was downloaded; `winnow download URLS --pool {pool.root}` comes first"
        )
    check_settings(pool, config)
    clean_up(pool)
    waiting = {
        (plan.fingerprint, shard): count for plan in plans.values() for shard, count in _temporary(pool, plan).items()
    }
    num_shards = sum(plan.num_shards for plan in plans.values())
    if not waiting:
        return make_report(pool, num_shards, [])
    per_host = share_connections(config, executor, len(waiting))
    tasks = [make_task(pool, plans[fingerprint], shard, config, per_host) for fingerprint, shard in waiting]
    counts = run_shards(
        [[task] for task in tasks],
        sum(waiting.values()),
        pool,
        executor,
        progress,
        stage="retry",
        function=retry_shards,
    )
    return make_report(pool, num_shards, counts)


def retry_shards(tasks: Sequence[ShardTask]) -> list[ShardCounts]:
    """Fetch the temporary failures of some shards again."""
    return [retry_shard(task) for task in tasks]


def retry_shard(task: ShardTask) -> ShardCounts:
    """Fetch the temporary failures of one shard again; the counts are of those rows."""
    start_time = time.time()
    pool, shard = task.pool, task.shard
    table = pool.read_table(pool.shard_parquet(shard))
    results = _read_results(table)
    wanted = [row for row, result in enumerate(results) if is_temporary(result.error_message)]
    rows = pool.read_table(task.rows_path)
    if rows["uid"].to_pylist() != table["uid"].to_pylist():
        raise StaleDatasetError(
            f"{pool.locate(task.rows_path)} does not list the rows of shard {shard_name(shard)}; restore it, or download into another pool"
        )
    spool = Spool()
    reporter = ProgressReporter(pool, shard)
    try:
        refusal = Refusal(pool, task.rows_path, rows, wanted)
        fetched = fetch_rows(rows, refusal, task.config, task.connections_per_host, spool, reporter)
        again = [fetched[row] for row in wanted]
        if again != [results[row] for row in wanted]:
            _rewrite(task, rows, table, results, fetched, spool, start_time)
    finally:
        spool.close()
        reporter.close()
    return ShardCounts.of(again)


def _rewrite(
    task: ShardTask,
    rows: pa.Table,
    table: pa.Table,
    results: list[Transformed],
    fetched: dict[int, Transformed],
    spool: Spool,
    start_time: float,
) -> None:
    stored = _StoredImages(task.pool, task.shard, table, task.config.encode_format)
    try:
        write_shard(
            task.pool,
            task.shard,
            rows,
            [fetched.get(row, result) for row, result in enumerate(results)],
            lambda row: spool.get(row) if row in fetched else stored.get(row),
            shard_size=task.shard_size,
            suffix=task.config.encode_format,
            has_captions=task.has_captions,
            start_time=start_time,
        )
    finally:
        stored.close()


class _StoredImages:
    """The images of a shard's tar by row."""

    def __init__(self, pool: Pool, shard: int, table: pa.Table, suffix: str) -> None:
        self._file = pool.open(f"shards/{shard_name(shard)}.tar")
        self._keys = table["key"].to_pylist()
        ending = f".{suffix}"
        self._members = {
            member.name.removesuffix(ending): member for member in index_tar(self._file) if member.name.endswith(ending)
        }

    def get(self, row: int) -> bytes:
        """Return the stored image of a row."""
        member = self._members[self._keys[row]]
        self._file.seek(member.offset)
        return self._file.read(member.size)

    def close(self) -> None:
        """Close the tar."""
        self._file.close()


def _temporary(pool: Pool, plan: Plan) -> dict[int, int]:
    """Return how many rows of each committed shard may be fetched again; shards with none are left out."""
    committed = set(pool.shards())
    counts = {}
    for shard in plan.shards:
        if shard in committed and not pool.shard_header(shard).tar:
            messages = pool.read_table(pool.shard_parquet(shard), columns=["error_message"])["error_message"]
            counts[shard] = sum(is_temporary(message) for message in messages.to_pylist())
    return {shard: count for shard, count in counts.items() if count}


def _read_results(table: pa.Table) -> list[Transformed]:
    return [Transformed(**row) for row in table.select(list(RESULT_COLUMNS)).to_pylist()]
