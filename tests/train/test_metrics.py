import json
from pathlib import Path

from train.metrics import TIMINGS_FILE, MetricsLog, SilentLog, read_metrics


def write(run: Path, first: int, last: int, *, log_step: int, seconds: float = 1.0) -> None:
    with MetricsLog(run, step=log_step) as log:
        for step in range(first, last + 1):
            log.write({"step": step, "loss": 1 / step}, {"step": step, "seconds": seconds})
        log.sync()


def board(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    write(tmp_path, 1, 3, log_step=0)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 1 / 3},
    ]
    assert next(read_metrics(tmp_path / TIMINGS_FILE)) == {"step": 1, "seconds": 1.0}


def test_going_on_repeats_the_undisturbed_record(tmp_path: Path) -> None:
    write(tmp_path / "whole", 1, 6, log_step=0)
    write(tmp_path / "cut", 1, 5, log_step=0)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a line that a crash cut short
    write(tmp_path / "cut", 4, 6, log_step=3)
    names = [tmp_path / name / "metrics.jsonl" for name in ("whole", "cut")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    write(tmp_path, 1, 5, log_step=0)
    write(tmp_path, 4, 6, log_step=3)
    scalars = board(tmp_path)
    assert sorted(scalars) == ["train/loss", "train/seconds"]
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert scalars["train/loss"][1][1] == 0.5


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with SilentLog() as log:
        log.write({"step": 1}, {"step": 1})
        log.sync()
    assert list(tmp_path.iterdir()) == []
