"""An iterator drawn by a thread, a few items ahead of whoever consumes it."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


@contextmanager
def run_ahead(items: Iterator[Item], num_items: int) -> Iterator[Iterator[Item]]:
    """Yield `items` as a thread draws them, at most `num_items` ahead; on leaving the thread has ended."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=num_items)
    left = threading.Event()

    def offer(is_item: bool, value: Any) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                ready.put((is_item, value), timeout=_POLL_SECONDS)
                return

    def draw() -> None:
        try:
            for item in items:
                offer(True, item)
                if left.is_set():
                    return
            offer(False, None)
        except BaseException as error:  # noqa: BLE001  (raised again where the items are consumed)
            offer(False, error)

    def receive() -> Iterator[Item]:
        while True:
            is_item, value = ready.get()
            if not is_item:
                if value is not None:
                    raise value
                return
            yield value

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield receive()
    finally:
        left.set()
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()  # a stream that was left in the middle ends its files now, not when it is collected
