"""A function applied to items by several threads that all callers share; each caller gets its results in the order of its items."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lookahead(Generic[Item, Result]):
    """Runs `function` on at most `num_threads` items at a time, whoever brought them.

    With one thread a caller's own does the work, and nothing runs ahead of what it takes.
    """

    def __init__(self, function: Callable[[Item], Result], num_threads: int) -> None:
        self._function = function
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="batch") if num_threads > 1 else None
        # Items wait where they come from, not in the pool's queue: that would hold them all in memory.
        self._slots = threading.Semaphore(num_threads)

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in the order of the items; the first exception, of an item or of drawing one, ends it."""
        if self._pool is None:
            yield from map(self._function, items)
            return
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                self._slots.acquire()
                ahead.append(self._pool.submit(self._work, item))
                while ahead and (ahead[0].done() or len(ahead) > self._num_threads):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                if future.cancel():
                    self._slots.release()

    def _work(self, item: Item) -> Result:
        try:
            return self._function(item)
        finally:
            self._slots.release()
