"""One shard from rows to files: every URL fetched at once, fairly, each image decoded as it arrives.

This is what a worker runs. It depends on nothing but its arguments, so it may be killed and run again.
"""

import asyncio
import functools
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from curate.fetch.addresses import Target, parse_url
from curate.fetch.client import Client, Memory
from curate.fetch.config import DownloadConfig
from curate.fetch.errors import DEADLINE, OPTED_OUT, FetchError, PermanentError
from curate.fetch.transform import Transformed, failed_download, transform
from curate.fetch.writer import ShardCounts, Spool, write_shard
from curate.images import load_decoders
from curate.store import Pool
from schemas.sample import STATUS_SUCCESS, shard_name

logger = logging.getLogger(__name__)

PROGRESS_FOLDER = "ingest/progress"
_REPORT_SECONDS = 1.0
# Downloads waiting for a decoder: answers come in bursts, as many at once as there are connections, and none should wait for the others'
# pictures before its connection asks for the next.
_MAX_WAITING_BYTES = 64 * 1024**2
_HANDED_OVER_AT_ONCE = 8


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


@dataclass(frozen=True, slots=True)
class Fetched:
    """A row's result and the origins that were asked for it; the image itself is in the spool."""

    result: Transformed
    origins: frozenset[str] = frozenset()


Report = Callable[[Transformed], None]


def fetch_shard(task: ShardTask) -> ShardCounts:
    """Fetch and commit one shard."""
    start_time = time.time()
    threading.Thread(target=_load_libraries, name="load-libraries", daemon=True).start()
    task.pool.remove_abandoned("shards")
    rows = task.pool.read_table(task.rows_path)
    spool = Spool()
    reporter = ProgressReporter(task.pool, task.shard)
    try:
        results = fetch_rows(rows, range(len(rows)), task.config, task.connections_per_host, spool, reporter.report)
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
    wanted: Sequence[int],
    config: DownloadConfig,
    connections_per_host: int,
    spool: Spool,
    report: Report,
) -> dict[int, Transformed]:
    """Fetch some rows of a shard; images of successes go to `spool`."""
    if config.fetcher == "img2dataset":
        from curate.fetch.foreign import fetch_rows_with_img2dataset

        return fetch_rows_with_img2dataset(rows, wanted, config, spool, report)
    with ThreadPoolExecutor(max_workers=config.decode_threads, thread_name_prefix="decode") as threads:
        return asyncio.run(_fetch_all(rows, wanted, config, connections_per_host, spool, threads, report))


async def _fetch_all(
    rows: pa.Table,
    wanted: Sequence[int],
    config: DownloadConfig,
    connections_per_host: int,
    spool: Spool,
    threads: ThreadPoolExecutor,
    report: Report,
) -> dict[int, Transformed]:
    urls, uids, hashes = (rows[name].to_pylist() for name in ("url", "uid", "sha256"))
    fetched: dict[int, Fetched] = {}

    def finish(row: int, result: Transformed, trail: set[str]) -> None:
        fetched[row] = Fetched(result, frozenset(trail))
        report(result)

    targets: dict[int, Target] = {}
    for row in wanted:
        try:
            targets[row] = parse_url(urls[row])
        except PermanentError as error:
            finish(row, failed_download(str(error)), set())
    async with Client(config, process_memory(), connections_per_host=connections_per_host) as client:
        decoder = _Decoder(threads, config.decode_threads)

        async def fetch_row(row: int) -> None:
            trail: set[str] = set()
            try:
                data = await client.fetch(targets[row], uids[row], trail)
            except FetchError as error:
                finish(row, failed_download(str(error)), trail)
                return

            def keep(result: Transformed) -> None:
                if result.status == STATUS_SUCCESS:
                    spool.put(row, result.image)
                finish(row, replace(result, image=b""), trail)

            await decoder.submit(len(data), functools.partial(transform, data, hashes[row], config), keep)

        await _run_workers(_queue_by_host(targets), fetch_row, connections_per_host, config.shard_seconds)
        await decoder.drain()
        opted_out = client.opted_out
    for row in wanted:
        if row not in fetched:
            finish(row, failed_download(DEADLINE), set())
    return {row: _respect_opt_out(fetched[row], opted_out) for row in wanted}


class _Decoder:
    """Runs transforms in threads while their connections fetch on; the bytes that wait for a thread are bounded.

    A thread hands its results over several at a time: waking the event loop for each picture cost a quarter of the CPU time.
    """

    def __init__(self, threads: ThreadPoolExecutor, num_threads: int) -> None:
        self._threads = threads
        self._num_idle = num_threads
        self._num_bytes = 0  # of the jobs that are not finished
        self._has_room = asyncio.Event()
        self._queue: deque[_Job] = deque()
        self._running: set[asyncio.Future[None]] = set()
        self._error: BaseException | None = None

    async def submit(
        self, num_bytes: int, work: Callable[[], Transformed], keep: Callable[[Transformed], None]
    ) -> None:
        """Start `work` on a download of so many bytes; its result goes to `keep`. Waits only while too many bytes do."""
        while self._num_bytes > _MAX_WAITING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
        self._num_bytes += num_bytes
        self._queue.append(_Job(num_bytes, work, keep))
        self._start()

    async def drain(self) -> None:
        """Wait for what is running; raises the first error of any."""
        while self._running:
            await asyncio.wait(self._running)
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        if self._queue and self._num_idle:
            self._num_idle -= 1
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._threads, self._work, loop)
            self._running.add(future)
            future.add_done_callback(self._end)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run jobs until none is left; in a thread."""
        while True:
            finished: list[tuple[_Job, Transformed | BaseException]] = []
            while len(finished) < _HANDED_OVER_AT_ONCE:
                try:
                    job = self._queue.popleft()
                except IndexError:
                    break
                finished.append((job, job.run()))
            if not finished:
                return
            loop.call_soon_threadsafe(self._deliver, finished)

    def _deliver(self, finished: "list[tuple[_Job, Transformed | BaseException]]") -> None:
        for job, result in finished:
            self._num_bytes -= job.num_bytes
            self._has_room.set()
            if isinstance(result, BaseException):
                self._error = self._error or result
            else:
                job.keep(result)

    def _end(self, future: asyncio.Future[None]) -> None:
        self._running.discard(future)
        self._num_idle += 1
        self._error = self._error or future.exception()
        self._start()  # a job may have come while the thread was on its way out


@dataclass(frozen=True, slots=True)
class _Job:
    """A transform and where its result goes."""

    num_bytes: int
    work: Callable[[], Transformed]
    keep: Callable[[Transformed], None]

    def run(self) -> Transformed | BaseException:
        """Return the result, or what was raised: that is for the event loop to raise."""
        try:
            return self.work()
        except BaseException as error:  # noqa: BLE001 raised again by `drain`
            return error


async def _run_workers(
    queues: list[list[int]], fetch_row: Callable[[int], Awaitable[None]], workers_per_queue: int, seconds: float
) -> None:
    """Work off every host's queue side by side, and stop at the deadline; an exception of a worker is raised at the end."""
    workers = [
        asyncio.create_task(_drain(queue, fetch_row))
        for queue in queues
        for _ in range(min(len(queue), workers_per_queue))
    ]
    if not workers:
        return
    _, unfinished = await asyncio.wait(workers, timeout=seconds)
    for worker in unfinished:
        worker.cancel()
    for outcome in await asyncio.gather(*workers, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome


def _respect_opt_out(fetched: Fetched, opted_out: set[str]) -> Transformed:
    # A host says no for all of its images, those included that arrived before the answer that said so: the rows must not depend on
    # which answer came first.
    return failed_download(OPTED_OUT) if opted_out.intersection(fetched.origins) else fetched.result


async def _drain(queue: list[int], fetch_row: Callable[[int], Awaitable[None]]) -> None:
    while queue:
        await fetch_row(queue.pop())


def _queue_by_host(targets: dict[int, Target]) -> list[list[int]]:
    """Return the rows of each host, last first, so that `pop` takes them in order."""
    queues: dict[str, list[int]] = {}
    for row in reversed(targets):
        queues.setdefault(targets[row].origin, []).append(row)
    return list(queues.values())[::-1]


@functools.cache
def process_memory() -> Memory:
    """Return what this process remembers of hosts."""
    return Memory()


class ProgressReporter:
    """Tells the driver of a local pool how far a shard is, through a file that is rewritten once a second."""

    def __init__(self, pool: Pool, shard: int) -> None:
        self._pool = pool
        self._path = f"{PROGRESS_FOLDER}/{shard_name(shard)}.json"
        self._messages: Counter[str] = Counter()
        self._written = time.monotonic()

    def report(self, result: Transformed) -> None:
        """Count a finished row."""
        self._messages[result.error_message or STATUS_SUCCESS] += 1
        if self._pool.is_local and time.monotonic() - self._written > _REPORT_SECONDS:
            self._written = time.monotonic()
            self._pool.commit_bytes(self._path, json.dumps(self._messages).encode())

    def close(self) -> None:
        """Remove the file."""
        if self._pool.is_local:
            self._pool.remove(self._path)
