import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from schemas.errors import InputError
from train.sampler import Indices
from train.workers import Facts, Pixels, Request, WorkerError, WorkerPool

SIZE = 2


@dataclass(frozen=True)
class EchoJob:
    """Paints each picture with its index; says who and where; misbehaves at an index of its choice."""

    fails_at: int = -1
    how: str = ""

    def start(self) -> None:
        """Nothing to prepare."""

    def fill(self, key: tuple[int, ...], first: int, indices: Indices, images: Pixels, facts: Facts) -> list[str]:
        """Fill a stretch of a batch."""
        facts[:] = indices[:, None]
        for index in indices.tolist():
            if index == self.fails_at:
                self._fail()
        images[:] = (indices % 256).astype(np.uint8)[:, None, None, None]
        return [f"{key[0]}:{first + row}:{index}" for row, index in enumerate(indices.tolist())]

    def _fail(self) -> None:
        if self.how == "exit":
            os._exit(7)
        if self.how == "sleep":
            time.sleep(600)
        if self.how == "input":
            raise InputError("the user's fault")
        raise ZeroDivisionError("a bug")


def _requests(count: int, rows: int = 5) -> Iterator[Request]:
    for number in range(count):
        yield Request((number,), np.arange(number * rows, (number + 1) * rows))


def _pool(job: EchoJob, num_workers: int, *, prefetch: int = 3) -> WorkerPool:
    return WorkerPool(job, max_rows=5, image_size=SIZE, num_workers=num_workers, prefetch=prefetch)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 7])
def test_batches_come_in_order_and_whole(num_workers: int) -> None:
    pool = _pool(EchoJob(), num_workers)
    requests = [*_requests(9), Request((9,), np.array([45, 46])), Request((10,), np.array([], dtype=np.int64))]
    seen = 0
    for number, filled in enumerate(pool.run(iter(requests))):
        indices = requests[number].indices
        assert filled.request.key == (number,)
        assert filled.texts == [f"{number}:{row}:{index}" for row, index in enumerate(indices.tolist())]
        assert filled.images.shape == (len(indices), SIZE, SIZE, 3)
        assert (filled.images == indices[:, None, None, None] % 256).all()
        seen += 1
    assert seen == len(requests)
    pool.close()


def test_work_is_done_ahead_and_no_further() -> None:
    asked: list[int] = []

    def requests() -> Iterator[Request]:
        for request in _requests(100):
            asked.append(request.key[0])
            yield request

    pool = _pool(EchoJob(), 1, prefetch=2)
    filled = pool.run(requests())
    for number in range(20):
        batch = next(filled)
        assert number + 2 <= max(asked) <= number + 4
        del batch
    pool.close()


def test_a_users_error_comes_as_it_is_and_a_bug_with_its_traceback() -> None:
    with pytest.raises(InputError, match="the user's fault"):
        list(_pool(EchoJob(7, "input"), 2).run(_requests(4)))
    with pytest.raises(WorkerError, match=r"(?s)loader worker \d+ failed:.*_fail.*ZeroDivisionError: a bug"):
        list(_pool(EchoJob(7, "bug"), 2).run(_requests(4)))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(_pool(EchoJob(7, "bug"), 0).run(_requests(4)))


def test_a_worker_that_ends_by_itself_is_an_error() -> None:
    with pytest.raises(WorkerError, match=r"loader worker \d+ ended with exit code 7; its own message is above"):
        list(_pool(EchoJob(7, "exit"), 2).run(_requests(4)))


def test_a_worker_killed_while_it_works_is_an_error() -> None:
    pool = _pool(EchoJob(3, "sleep"), 1)
    filled = pool.run(_requests(4))

    def kill() -> None:
        while not pool.pids:
            time.sleep(0.01)
        time.sleep(1.0)
        os.kill(pool.pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerError, match="was killed by SIGKILL"):
        next(filled)
    killer.join()
    assert pool.pids == []


def test_a_pool_goes_on_after_a_run_that_was_left() -> None:
    pool = _pool(EchoJob(), 2)
    for _ in range(5):
        batches = pool.run(_requests(50))
        assert [next(batches).request.key[0] for _ in range(3)] == [0, 1, 2]
    pids = pool.pids
    batches = pool.run(_requests(30))
    assert [batch.request.key[0] for batch in batches] == list(range(30))
    assert pool.pids == pids
    pool.close()
