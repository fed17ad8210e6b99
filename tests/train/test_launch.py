import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError
from tests.train.training import TINY, write_scenes
from train.checkpoint import list_checkpoints
from train.config import TrainConfig
from train.launch import launch_ray
from train.metrics import read_metrics
from train.trainer import train

SETTINGS = {**TINY, "samples_seen": 16 * 150, "save_every": 10}


def kill_first_worker(run: Path, step: int, killed: list[int]) -> None:
    """Kill the process that trains `run` once it has come to `step`: the one that holds its lock."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if any(record["step"] >= step for record in read_metrics(run / "metrics.jsonl")):
            inode = (run / ".lock").stat().st_ino
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                    os.kill(int(fields[4]), signal.SIGKILL)
                    killed.append(max(list_checkpoints(run)))
                    return
        time.sleep(0.05)


@pytest.mark.slow
def test_ray_workers_give_the_curve_of_one_process_through_a_lost_one(ray_session: object, tmp_path: Path) -> None:
    dataset = write_scenes(tmp_path / "dataset")
    train(str(dataset), str(tmp_path / "alone"), TrainConfig(**SETTINGS))
    killed: list[int] = []
    killer = threading.Thread(target=kill_first_worker, args=(tmp_path / "run", 12, killed))
    (tmp_path / "run").mkdir()
    killer.start()
    report = launch_ray(str(dataset), str(tmp_path / "run"), TrainConfig(**SETTINGS), num_workers=2)
    killer.join()
    assert killed
    assert killed[0] < 150
    assert (report.step, report.was_finished) == (150, False)
    assert report.checkpoint == tmp_path / "run" / "checkpoints" / "step_00000150"
    curves = [
        [(record["step"], record["loss"]) for record in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("alone", "run")
    ]
    np.testing.assert_allclose(curves[1][:40], curves[0][:40], rtol=1e-3)
    assert [step for step, _ in curves[1]] == list(range(1, 151))
    assert not (tmp_path / "run" / ".ray").exists()
    with pytest.raises(InputError, match=r"holds another run: lr was 0\.002 and is now 0\.1"):
        launch_ray(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SETTINGS, "lr": 0.1}), num_workers=2)
