"""Decoding beside the network: transforms run in threads while connections fetch on, and the bytes that wait are bounded."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from curate.fetch.transform import Transformed

# Downloads waiting for a thread: answers come in bursts, as many at once as there are connections, and none should wait for the others'
# pictures before its connection asks for the next.
_MAX_WAITING_BYTES = 64 * 1024**2
_HANDED_OVER_AT_ONCE = 8

Keep = Callable[[Transformed | BaseException], None]


class Decoder:
    """Runs transforms in threads for one event loop, in the order they came; a context manager that lets its threads go.

    A thread hands its results over several at a time: waking the event loop for each picture cost a quarter of the CPU time.
    """

    def __init__(self, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="decode")
        self._num_idle = num_threads
        self._num_bytes = 0  # of the jobs that are not finished
        self._has_room = asyncio.Event()
        self._queue: deque[_Job] = deque()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._queue.clear()
        self._threads.shutdown()

    async def wait_for_room(self) -> None:
        """Return as soon as no more than a bounded number of bytes waits for a thread."""
        while self._num_bytes > _MAX_WAITING_BYTES:
            self._has_room.clear()
            await self._has_room.wait()

    def submit(self, num_bytes: int, work: Callable[[], Transformed], keep: Keep) -> None:
        """Start `work` on a download of so many bytes; its result, or what it raised, goes to `keep` in the event loop."""
        self._num_bytes += num_bytes
        self._queue.append(_Job(num_bytes, work, keep))
        self._start()

    def _start(self) -> None:
        if self._queue and self._num_idle:
            self._num_idle -= 1
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self._threads, self._work, loop).add_done_callback(self._end)

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
            job.keep(result)

    def _end(self, future: asyncio.Future[None]) -> None:
        self._num_idle += 1
        if not future.cancelled():
            future.result()
            self._start()  # a job may have come while the thread was on its way out


@dataclass(frozen=True, slots=True)
class _Job:
    """A transform and where its result goes."""

    num_bytes: int
    work: Callable[[], Transformed]
    keep: Keep

    def run(self) -> Transformed | BaseException:
        """Return the result, or what was raised: that is for the shard to raise."""
        try:
            return self.work()
        except BaseException as error:  # noqa: BLE001 raised again by the shard
            return error
