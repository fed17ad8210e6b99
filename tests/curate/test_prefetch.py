"""An iterator drawn by a thread."""

import threading
import time
from collections.abc import Iterator

import pytest

from curate.prefetch import run_ahead


def test_items_arrive_in_order() -> None:
    with run_ahead(iter(range(100)), 3) as items:
        assert list(items) == list(range(100))


def test_it_runs_ahead_but_not_far() -> None:
    drawn = []

    def source() -> Iterator[int]:
        for item in range(20):
            drawn.append(item)
            yield item

    with run_ahead(source(), 2) as items:
        next(items)
        deadline = time.monotonic() + 5
        while len(drawn) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(drawn) == 4  # one taken, two waiting, one in hand
        assert list(items) == list(range(1, 20))


def test_an_exception_is_raised_where_items_are_taken() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with run_ahead(source(), 2) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_leaving_early_ends_thread_and_source() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    before = threading.active_count()
    with pytest.raises(KeyError), run_ahead(source(), 2) as items:
        next(items)
        raise KeyError
    assert closed == [True]
    assert threading.active_count() == before
