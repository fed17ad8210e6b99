"""`winnow download`: a list of URLs becomes the shards of a pool. Run again, it fetches what is missing and nothing else."""

import itertools
import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.ingest import Plan, ingest
from curate.fetch.shard import PROGRESS_FOLDER, ShardTask, fetch_shards
from curate.fetch.writer import ShardCounts, read_counts
from curate.store import Pool
from schemas.errors import ShardError
from schemas.progress import Progress
from schemas.sample import STATUS_SUCCESS, shard_name

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_NUM_TOP_ERRORS = 3
# Shards that one worker is given at a time; the next of them starts while the last is waited for and written.
_MAX_GROUP_SHARDS = 8


@dataclass(frozen=True, kw_only=True)
class DownloadReport:
    """What a download or retry did; counts cover the shards it wrote, `num_shards` all of the list's."""

    pool: str
    num_shards: int
    num_shards_written: int
    num_rows: int
    num_successes: int
    messages: dict[str, int] = field(
        default_factory=dict
    )  # error_message -> rows, most frequent first, "success" included

    @property
    def success_ratio(self) -> float:
        """Successes per row, 0 where nothing was fetched."""
        return self.num_successes / self.num_rows if self.num_rows else 0.0


def download(
    urls: str | Sequence[str], pool: Pool, config: DownloadConfig, *, executor: Executor, progress: Progress
) -> DownloadReport:
    """Fetch every URL of the lists into `pool`; shards that exist stay as they are.

    Raises ShardError where shards failed after every retry (the others are committed); a URL that fails is a row, not an error.
    """
    plan = ingest(urls, pool, config)
    clean_up(pool)
    committed = set(pool.shards())
    missing = [shard for shard in plan.shards if shard not in committed]
    if not missing:
        return make_report(pool, plan.num_shards, [])
    groups = group_shards(missing, executor.num_parallel(), config)
    per_host = share_connections(config, executor, len(groups))
    tasks = [[make_task(pool, plan, shard, config, per_host) for shard in group] for group in groups]
    num_rows = sum(map(plan.shard_rows, missing))
    counts = run_shards(tasks, num_rows, pool, executor, progress, stage="download")
    return make_report(pool, plan.num_shards, counts)


def group_shards(shards: Sequence[int], num_workers: int, config: DownloadConfig) -> list[Sequence[int]]:
    """Cut shards into groups that a worker fetches without a pause in between: few in each, and as many for one worker as for another."""
    if config.fetcher == "img2dataset":  # each pass is a process of its own, which overlaps with none
        return [[shard] for shard in shards]
    num_rounds = math.ceil(len(shards) / (num_workers * _MAX_GROUP_SHARDS))
    num_groups = min(len(shards), num_workers * num_rounds)
    ends = [len(shards) * index // num_groups for index in range(num_groups + 1)]
    return [shards[start:end] for start, end in itertools.pairwise(ends)]


def run_shards(
    groups: Sequence[Sequence[ShardTask]],
    num_rows: int,
    pool: Pool,
    executor: Executor,
    progress: Progress,
    *,
    stage: str,
    function: Callable[[Sequence[ShardTask]], list[ShardCounts]] = fetch_shards,
) -> list[ShardCounts]:
    """Run groups of shard tasks under a progress bar and return their counts; raises ShardError at the end where some failed."""
    counts: list[ShardCounts] = []
    failures: dict[str, str] = {}
    progress.start(stage, num_rows, "images")
    try:
        with _Bar(pool, progress) as bar:
            for outcome in executor.map(function, groups):
                for task in outcome.unit if outcome.result is None else ():
                    # One shard's error is its group's, the others of which may be whole.
                    if len(outcome.unit) > 1 and pool.exists(pool.shard_parquet(task.shard)):
                        counts.append(read_counts(pool, task.shard))
                        continue
                    failures[shard_name(task.shard)] = outcome.error or "unknown error"
                    logger.error(
                        "shard failed stage=%s shard=%s error=%s", stage, shard_name(task.shard), outcome.error
                    )
                counts += outcome.result or []
                bar.show(counts)
    finally:
        progress.close()
    if failures:
        first = next(iter(failures))
        num_shards = sum(len(group) for group in groups)
        raise ShardError(
            f"{len(failures)} of {num_shards} shards failed, first {first}: {failures[first]}; run the command again",
            failures,
        )
    return counts


def make_report(pool: Pool, num_shards: int, counts: Iterable[ShardCounts]) -> DownloadReport:
    """Add up the counts of shards."""
    counts = list(counts)
    messages: Counter[str] = Counter()
    for count in counts:
        messages.update(count.messages)
    return DownloadReport(
        pool=pool.root,
        num_shards=num_shards,
        num_shards_written=len(counts),
        num_rows=sum(count.num_rows for count in counts),
        num_successes=sum(count.num_successes for count in counts),
        messages=dict(messages.most_common()),
    )


def clean_up(pool: Pool) -> None:
    """Remove what killed runs left: staging files, progress files."""
    pool.remove_abandoned("shards")
    if pool.is_local:
        pool.remove_abandoned(PROGRESS_FOLDER)
        for name in pool.list_names(PROGRESS_FOLDER):
            pool.remove(f"{PROGRESS_FOLDER}/{name}")


def share_connections(config: DownloadConfig, executor: Executor, num_tasks: int) -> int:
    """Return how many requests one worker may have at one host, so that all together stay within the limit (but one each they have)."""
    return max(1, config.connections_per_host // min(executor.num_parallel(), num_tasks))


def make_task(pool: Pool, plan: Plan, shard: int, config: DownloadConfig, connections_per_host: int) -> ShardTask:
    """Return what a worker needs to know to fetch a planned shard."""
    return ShardTask(
        pool=pool,
        shard=shard,
        rows_path=plan.rows_path(shard),
        shard_size=plan.shard_size,
        has_captions=plan.has_captions,
        config=config,
        connections_per_host=connections_per_host,
    )


class _Bar:
    """Advances a progress bar by finished shards and by what running shards of a local pool report."""

    def __init__(self, pool: Pool, progress: Progress) -> None:
        self._pool = pool
        self._progress = progress
        self._lock = threading.Lock()
        self._messages: Counter[str] = Counter()  # of finished shards
        self._shown = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="download-progress", daemon=True)

    def __enter__(self) -> "_Bar":
        if self._pool.is_local:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def show(self, counts: Sequence[ShardCounts]) -> None:
        """Show the shards that are finished so far."""
        with self._lock:
            self._messages = sum((Counter(count.messages) for count in counts), Counter())
            self._show(Counter())

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            running: Counter[str] = Counter()
            for name in self._pool.list_names(PROGRESS_FOLDER, ".json"):
                try:
                    running.update(json.loads(self._pool.read_bytes(f"{PROGRESS_FOLDER}/{name}")))
                except FileNotFoundError:  # its shard has just ended
                    continue
            with self._lock:
                self._show(running)

    def _show(self, running: Counter[str]) -> None:
        messages = self._messages + running
        total = messages.total()
        # A shard between its last report and its end is not counted for a moment; a bar does not go back.
        if total <= self._shown:
            return
        errors = [f"{text} ({count})" for text, count in messages.most_common() if text != STATUS_SUCCESS]
        fields = {"success": f"{messages[STATUS_SUCCESS] / total:.1%}"}
        if errors:
            fields["errors"] = ", ".join(errors[:_NUM_TOP_ERRORS])
        self._progress.advance(total - self._shown, **fields)
        self._shown = total
