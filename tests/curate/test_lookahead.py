"""Results in order, threads shared, errors passed on, and never more items taken than threads can use."""

import threading
import time
from collections.abc import Iterator

import pytest

from curate.lookahead import Lookahead


def wait_and_square(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0.001)
    return number * number


@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    assert list(Lookahead(wait_and_square, num_threads).map(range(30))) == [number * number for number in range(30)]


def test_callers_share_the_threads() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def count(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return number

    lookahead = Lookahead(count, 3)
    found: list[list[int]] = []
    callers = [
        threading.Thread(target=lambda start=start: found.append(list(lookahead.map(range(start, start + 20)))))
        for start in (0, 100, 200, 300)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert sorted(found) == [list(range(start, start + 20)) for start in (0, 100, 200, 300)]
    assert most == 3


def test_items_are_not_drawn_far_ahead() -> None:
    drawn = 0
    hold = threading.Event()

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(100):
            drawn += 1
            yield number

    def wait(number: int) -> int:
        hold.wait(10)
        return number

    results: list[int] = []
    caller = threading.Thread(target=lambda: results.extend(Lookahead(wait, 4).map(items())))
    caller.start()
    time.sleep(0.1)
    assert drawn <= 5
    hold.set()
    caller.join(30)
    assert results == list(range(100))


@pytest.mark.parametrize("num_threads", [1, 4])
def test_an_error_ends_its_caller_and_nobody_else(num_threads: int) -> None:
    def divide(number: int) -> float:
        return 1 / number

    lookahead = Lookahead(divide, num_threads)
    for _ in range(5):  # more often than there are threads: a failure gives its slot back
        with pytest.raises(ZeroDivisionError):
            list(lookahead.map([1, 2, 0, 4, 5, 6, 7, 8]))
    assert list(lookahead.map([1, 2, 4])) == [1.0, 0.5, 0.25]


def test_an_error_in_the_source_is_passed_on() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the tar ends early")

    lookahead = Lookahead(wait_and_square, 4)
    with pytest.raises(OSError, match="the tar ends early"):
        list(lookahead.map(items()))
    assert list(lookahead.map(range(10))) == [number * number for number in range(10)]
