"""Values computed once, errors not kept, the oldest forgotten."""

import threading

import pytest

from pipelines.browse.recent import Recent


def test_a_value_is_computed_once_for_all_who_ask() -> None:
    recent: Recent[int] = Recent(2)
    begun, go = threading.Event(), threading.Event()
    calls = []

    def slow() -> int:
        calls.append(1)
        begun.set()
        assert go.wait(10)
        return 7

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(recent.get("a", slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert recent.get("b", lambda: 8) == 8  # nobody waits for another key
    go.set()
    for thread in threads:
        thread.join(10)
    assert (found, calls) == ([7] * 4, [1])


def test_the_oldest_is_forgotten() -> None:
    recent: Recent[int] = Recent(2)
    for key in "abac":
        recent.get(key, lambda: 1)
    assert recent.get("a", lambda: 2) == 1
    assert recent.get("b", lambda: 2) == 2


def test_an_error_is_not_kept() -> None:
    recent: Recent[int] = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 3) == 3
