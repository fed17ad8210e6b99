"""Progress for people: a bar on a terminal, a log line every ten seconds anywhere else."""

import logging
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from schemas.progress import Progress as ProgressContract

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0


class _RateColumn(ProgressColumn):
    """Units per second, over the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")


class BarProgress:
    """A rich bar on stderr: stage, share, count, rate, time left, and the fields of the last advance."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Show a bar; an earlier stage that was left open is closed first."""
        self.close()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
        )
        self._task = self._bar.add_task(stage, total=total, unit=unit, note="")
        self._bar.start()

    def advance(self, amount: int, **fields: str) -> None:
        """Move the bar; fields stay until the next advance that has some."""
        if self._bar is None:
            return
        self._bar.advance(self._task, amount)
        if fields:
            self._bar.update(self._task, note=_join(fields))

    def close(self) -> None:
        """Leave the bar as it stands and free the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LogProgress:
    """A log line every `LOG_SECONDS` seconds and one at the end, for files and batch systems."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._total: int | None = None
        self._unit = ""
        self._done = 0
        self._fields: dict[str, str] = {}
        self._started = self._reported = 0.0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin counting; an earlier stage that was left open is closed first."""
        self.close()
        self._stage, self._total, self._unit = stage, total, unit
        self._done, self._fields = 0, {}
        self._started = self._reported = self._clock()

    def advance(self, amount: int, **fields: str) -> None:
        """Count, and log when the last line is ten seconds old."""
        self._done += amount
        self._fields = fields or self._fields
        now = self._clock()
        if self._stage and now - self._reported >= LOG_SECONDS:
            self._report(now)

    def close(self) -> None:
        """Log the final count."""
        if self._stage:
            self._report(self._clock())
            self._stage = ""

    def _report(self, now: float) -> None:
        self._reported = now
        done = f"{self._done:,}" if self._total is None else f"{self._done:,}/{self._total:,}"
        rate = self._done / max(now - self._started, 1e-9)
        note = f" {_join(self._fields)}" if self._fields else ""
        logger.info("%s: %s %s, %.1f/s%s", self._stage, done, self._unit, rate, note)


def choose_progress() -> ProgressContract:
    """Return a bar where stderr is a terminal, log lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()


def _join(fields: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())
