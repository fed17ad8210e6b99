"""Progress bars and log lines."""

import io
import logging

import pytest
from rich.console import Console

from pipelines.progress import LOG_SECONDS, BarProgress, LogProgress


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_log_lines_come_every_ten_seconds_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = LogProgress(clock)
    with caplog.at_level(logging.INFO, logger="pipelines.progress"):
        progress.start("download", 1000, "samples")
        clock.now += LOG_SECONDS / 2
        progress.advance(100)
        assert caplog.messages == []
        clock.now += LOG_SECONDS / 2
        progress.advance(100, success="97.1%")
        clock.now += 1
        progress.advance(50)
        progress.close()
        progress.close()
    assert caplog.messages == [
        "download: 200/1,000 samples, 20.0/s success=97.1%",
        "download: 250/1,000 samples, 22.7/s success=97.1%",
    ]


def test_starting_a_stage_closes_the_one_before(caplog: pytest.LogCaptureFixture) -> None:
    progress = LogProgress(Clock())
    with caplog.at_level(logging.INFO, logger="pipelines.progress"):
        progress.start("annotate", None, "samples")
        progress.advance(3)
        progress.start("select", 2, "rules")
    assert [message.split(",")[0] for message in caplog.messages] == ["annotate: 3 samples"]


def test_bar_shows_stage_count_and_fields() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=160))
    progress.start("download", 10, "samples")
    progress.advance(4, success="75.0%")
    progress.close()
    progress.advance(1)  # after the end: ignored
    text = stream.getvalue()
    assert "download" in text
    assert "4/10" in text
    assert "success=75.0%" in text


def test_bar_without_a_total() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=160))
    progress.start("import", None, "samples")
    progress.advance(7)
    progress.close()
    assert "7/?" in stream.getvalue()
