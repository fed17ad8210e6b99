"""Turns the first interrupt or termination signal into a flag, so that a run can save before it ends."""

import signal
import threading
from types import FrameType


class StopSignal:
    """While the block runs, SIGINT and SIGTERM set `name`; a second SIGINT interrupts at once. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
