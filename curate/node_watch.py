"""Ends this process where Ray would let it wait for ever: in a start that does not end, or for a node whose processes have died.

Ray bounds most of its waits, but not all: a driver whose node was killed while it was starting has been seen to hang. Every stage
commits last and goes on where it was, so an end is better than a hang.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

START_SECONDS = 200.0
# Ray notices most deaths by itself within half a minute, and says more about them; after a minute without its store it ends the process in
# words of its own.
DEAD_SECONDS = 45.0
_KNOCK_SECONDS = 10.0
_SECONDS_BETWEEN_LOOKS = 2.0


class NodeWatch:
    """Watches from before a start until `stop`.

    `has_died()` tells whether the node is known to be dead; an exception of it counts as no, because it looks at what another thread changes.
    """

    def __init__(
        self,
        has_died: Callable[[], bool],
        *,
        start_seconds: float = START_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
        seconds_between_looks: float = _SECONDS_BETWEEN_LOOKS,
    ) -> None:
        self._has_died = has_died
        self._start_seconds = start_seconds
        self._dead_seconds = dead_seconds
        self._seconds_between_looks = seconds_between_looks
        self._has_started = threading.Event()
        self._has_ended = threading.Event()

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        threading.Thread(target=self._watch, name="ray-node-watch", daemon=True).start()

    def has_started(self) -> None:
        """Say that the start is over; from now on only a dead node ends the process."""
        self._has_started.set()

    def stop(self) -> None:
        """End the watch."""
        self._has_ended.set()

    def _watch(self) -> None:
        began = time.monotonic()
        died: float | None = None
        while not self._has_ended.wait(self._seconds_between_looks):
            is_dead = False
            with suppress(RuntimeError, AttributeError, OSError):
                is_dead = self._has_died()
            now = time.monotonic()
            died = (died or now) if is_dead else None
            if died is not None and now - died >= self._dead_seconds:
                _end("the Ray node of this machine died")
            if not self._has_started.is_set() and now - began >= self._start_seconds:
                _end(f"Ray did not start within {self._start_seconds:.0f} seconds")


def knock(address: str | None) -> None:
    """Raise ConnectionError where nobody listens at `host:port`: Ray would try for minutes before it says so."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


def dead_children(names: frozenset[str]) -> list[str]:
    """Return which of this process's children with these names have ended and are not waited for yet; none where there is no /proc."""
    found = []
    with suppress(OSError):
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):  # it ends while it is looked at
                # The name stands in parentheses and may hold any character; state and parent follow it.
                head, _, rest = (entry / "stat").read_text().rpartition(")")
                state, parent = rest.split()[:2]
                name = head.partition("(")[2]
                if state == "Z" and int(parent) == os.getpid() and name in names:
                    found.append(name)
    return found


def _end(reason: str) -> None:
    logger.critical("%s; run the same command again, it goes on where it was", reason)
    logging.shutdown()
    os._exit(1)
