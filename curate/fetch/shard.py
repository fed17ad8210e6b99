"""Shards from rows to files: every URL fetched at once, fairly, each image decoded as it arrives, each shard committed by itself.

This is what a worker runs. It depends on nothing but its arguments, so it may be killed and run again: what it has committed stays.
"""

import asyncio
import functools
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyarrow as pa

from curate.fetch.client import Client, Memory
from curate.fetch.config import DownloadConfig
from curate.fetch.decoder import Decoder
from curate.fetch.refusal import Refusal
from curate.fetch.rows import RowFetch
from curate.fetch.transform import Transformed
from curate.fetch.writer import ShardCounts, Spool, read_counts, write_shard
from curate.images import load_decoders
from curate.store import Pool
from schemas.sample import STATUS_SUCCESS, shard_name

logger = logging.getLogger(__name__)

PROGRESS_FOLDER = "ingest/progress"
_REPORT_SECONDS = 1.0
# A shard whose last answers are waited for, or that is being written, and the one that is fetched meanwhile.
_MAX_OPEN_SHARDS = 2


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What a worker is told: which rows of which pool, and how."""

    pool: Pool
    shard: int
    rows_path: str
    shard_size: int
    has_captions: bool
    config: DownloadConfig
    connections_per_host: int


def fetch_shards(tasks: Sequence[ShardTask]) -> list[ShardCounts]:
    """Fetch and commit shards of one download; those that are committed already stay as they are.

    They share connections, and none waits for the end of the one before: while its last answers are waited for, and while it is written,
    the next is fetched. A shard that fails does not keep the others from their commit; the first error is raised at the end.
    """
    threading.Thread(target=_load_libraries, name="load-libraries", daemon=True).start()
    tasks[0].pool.remove_abandoned("shards")
    if tasks[0].config.fetcher == "img2dataset":
        return [_fetch_foreign_shard(task) for task in tasks]
    jobs = [_ShardJob(task) for task in tasks]
    try:
        return asyncio.run(_run_in_turn(jobs))
    finally:
        for job in jobs:
            job.close()


def _fetch_foreign_shard(task: ShardTask) -> ShardCounts:
    start_time = time.time()
    rows = task.pool.read_table(task.rows_path)
    spool = Spool()
    reporter = ProgressReporter(task.pool, task.shard)
    try:
        refusal = Refusal(task.pool, task.rows_path, rows, range(len(rows)))
        results = fetch_rows(rows, refusal, task.config, task.connections_per_host, spool, reporter)
        return commit_results(task, rows, results, spool, start_time)
    finally:
        spool.close()
        reporter.close()


@functools.cache
def _load_libraries() -> None:
    """Load what the first picture and the end of the first shard need, while the network is waited for anyway."""
    load_decoders()
    pa.array(["pandas, which Arrow loads for its first list"])


def fetch_rows(
    rows: pa.Table,
    refusal: Refusal,
    config: DownloadConfig,
    connections_per_host: int,
    spool: Spool,
    reporter: "ProgressReporter",
) -> dict[int, Transformed]:
    """Fetch some rows of a shard, but those that were taken down; images of successes go to `spool`."""
    if config.fetcher == "img2dataset":
        from curate.fetch.foreign import fetch_rows_with_img2dataset

        results = fetch_rows_with_img2dataset(rows, refusal.allowed, config, spool, reporter.count)
        return refusal.complete(results)

    async def run() -> dict[int, Transformed]:
        fetch = RowFetch(rows, refusal.allowed, config, spool, reporter.count, refusal.refuses)
        async with _open_tools(config, connections_per_host) as tools, tools.showing(reporter):
            return await fetch.run(tools.client, tools.decoder)

    return refusal.complete(asyncio.run(run()))


@dataclass(frozen=True)
class _Tools:
    """What the shards of a worker share."""

    client: Client
    decoder: Decoder
    files: ThreadPoolExecutor  # one thread, which reads and writes in the order it is told

    @asynccontextmanager
    async def showing(self, reporter: "ProgressReporter") -> AsyncIterator[None]:
        """Rewrite a shard's progress file every second, in the thread for files: it may take a while on a busy disk."""

        async def show() -> None:
            while True:
                await asyncio.sleep(_REPORT_SECONDS)
                await asyncio.get_running_loop().run_in_executor(self.files, reporter.write)

        task = asyncio.create_task(show())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


@asynccontextmanager
async def _open_tools(config: DownloadConfig, connections_per_host: int) -> AsyncIterator[_Tools]:
    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="files") as files,
        Decoder(config.decode_threads) as decoder,
    ):
        async with Client(config, process_memory(), connections_per_host=connections_per_host) as client:
            yield _Tools(client, decoder, files)


async def _run_in_turn(jobs: "Sequence[_ShardJob]") -> list[ShardCounts]:
    loop = asyncio.get_running_loop()
    task = jobs[0].task
    async with _open_tools(task.config, task.connections_per_host) as tools:
        running: list[asyncio.Task[ShardCounts]] = []
        # Read and parsed ahead, so that a shard starts at the moment there is room for it.
        prepared = loop.run_in_executor(tools.files, jobs[0].prepare)
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            unfinished = [shard for shard in running if not shard.done()]
            if len(unfinished) >= _MAX_OPEN_SHARDS:
                await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
            running.append(asyncio.create_task(job.run(tools, prepared)))
            if following is not None:
                prepared = loop.run_in_executor(tools.files, following.prepare)
            await job.has_room.wait()
        await asyncio.wait(running)
    errors = [error for shard in running if (error := shard.exception()) is not None]
    if errors:
        raise errors[0]
    return [shard.result() for shard in running]


class _ShardJob:
    """A shard on its way through a worker."""

    def __init__(self, task: ShardTask) -> None:
        self.task = task
        self.has_room = asyncio.Event()  # so little is left to fetch that another shard may start
        self._reporter = ProgressReporter(task.pool, task.shard)
        self._spool = Spool()

    def prepare(self) -> ShardCounts | RowFetch:
        """Read the rows; where a worker committed the shard before it died, its counts instead."""
        task = self.task
        if task.pool.exists(task.pool.shard_parquet(task.shard)):
            return read_counts(task.pool, task.shard)
        self._rows = task.pool.read_table(task.rows_path)
        self._refusal = Refusal(task.pool, task.rows_path, self._rows, range(len(self._rows)))
        return RowFetch(
            self._rows,
            self._refusal.allowed,
            task.config,
            self._spool,
            self._reporter.count,
            self._refusal.refuses,
        )

    async def run(self, tools: _Tools, prepared: "asyncio.Future[ShardCounts | RowFetch]") -> ShardCounts:
        """Fetch and commit."""
        try:
            fetch = await prepared
            if isinstance(fetch, ShardCounts):
                return fetch
            start_time = time.time()
            fetch.on_ending = self.has_room.set
            async with tools.showing(self._reporter):
                results = await fetch.run(tools.client, tools.decoder)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(tools.files, self._write, results, start_time)
        finally:
            self.has_room.set()
            self._spool.close()

    def close(self) -> None:
        """Free what the shard held; its progress was shown until now, when its counts are handed over."""
        self._spool.close()
        self._reporter.close()

    def _write(self, results: dict[int, Transformed], start_time: float) -> ShardCounts:
        results = self._refusal.complete(results)
        counts = commit_results(self.task, self._rows, results, self._spool, start_time)
        self._reporter.write()
        return counts


def commit_results(
    task: ShardTask, rows: pa.Table, results: dict[int, Transformed], spool: Spool, start_time: float
) -> ShardCounts:
    """Write and commit a shard whose every row was fetched."""
    return write_shard(
        task.pool,
        task.shard,
        rows,
        [results[row] for row in range(len(rows))],
        spool.get,
        shard_size=task.shard_size,
        suffix=task.config.encode_format,
        has_captions=task.has_captions,
        start_time=start_time,
    )


@functools.cache
def process_memory() -> Memory:
    """Return what this process remembers of hosts."""
    return Memory()


class ProgressReporter:
    """Tells the driver of a local pool how far a shard is, through a file."""

    def __init__(self, pool: Pool, shard: int) -> None:
        self._pool = pool
        self._path = f"{PROGRESS_FOLDER}/{shard_name(shard)}.json"
        self._messages: Counter[str] = Counter()

    def count(self, result: Transformed) -> None:
        """Count a finished row."""
        self._messages[result.error_message or STATUS_SUCCESS] += 1

    def write(self) -> None:
        """Write the file."""
        if self._pool.is_local:
            self._pool.commit_bytes(self._path, json.dumps(dict(self._messages)).encode())

    def close(self) -> None:
        """Remove the file."""
        if self._pool.is_local:
            self._pool.remove(self._path)
