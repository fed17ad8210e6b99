"""The record of a run: `metrics.jsonl` (what was learned), `logs/timings.jsonl` (how fast), and TensorBoard drawn from both.

`metrics.jsonl` holds nothing that a second run would measure differently. A run that goes on from a checkpoint cuts both files back to
its step first and draws TensorBoard anew, so that no step is recorded twice.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from train.checkpoint import write_file

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "logs/timings.jsonl"
TENSORBOARD = "tensorboard"

Record = Mapping[str, float | int]


class MetricsLog:
    """Appends records; a context manager."""

    def __init__(self, run: Path, *, step: int) -> None:
        """Open the files of `run`, cut back to the records of at most `step`."""
        from tensorboardX import SummaryWriter

        shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
        self._board = SummaryWriter(str(run / TENSORBOARD))
        self._metrics = self._open(run / METRICS_FILE, step)
        self._timings = self._open(run / TIMINGS_FILE, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._metrics, self._timings):
            file.close()
        self._board.close()

    def write(self, metrics: Record, timings: Record) -> None:
        """Append one record to each file; both carry the key `step`."""
        for file, record in ((self._metrics, metrics), (self._timings, timings)):
            file.write(json.dumps(record) + "\n")
            file.flush()
            self._draw(record)

    def sync(self) -> None:
        """Return when everything written is on disk; a checkpoint must not be newer than its record."""
        for file in (self._metrics, self._timings):
            os.fsync(file.fileno())

    def _open(self, path: Path, step: int) -> TextIO:
        path.parent.mkdir(exist_ok=True)
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        write_file(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        for record in kept:
            self._draw(record)
        return path.open("a")

    def _draw(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(f"train/{name}", value, int(record["step"]))


class SilentLog:
    """Records nothing: the processes besides the first."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, metrics: Record, timings: Record) -> None:
        """Ignore the records."""

    def sync(self) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """Yield the records of a metrics file in order; a line that a crash cut short ends it."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
