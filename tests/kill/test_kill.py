"""Kill -9 of the driver, a worker and the node process at random moments of every stage: the final files do not change."""

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.kill.digests import digest_tree
from tests.kill.processes import kill_and_finish, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

MAX_TRIES = 5
# What each stage makes.
OUTPUTS = {
    "download": "pool",
    "annotate": "pool/annotations",
    "select": "pool/selections",
    "build": "datasets",
    "train": "run",
}
KINDS = ("driver", "worker", "node", "driver")


def stages(urls: Path, root: Path) -> dict[str, list[str]]:
    """Return the command of every stage for a pool below `root`."""
    pool = str(root / "pool")
    return {
        "download": [
            *("download", str(urls), "--pool", pool, "--allow-private"),
            *("--shard-size", "50", "--image-size", "128"),
        ],
        "annotate": ["annotate", "--pool", pool, "image_stats", "caption_stats", "perceptual_hash", "exact_dedup"],
        "select": [
            *("select", "--pool", pool, "--name", "kept", "--rule", "words=caption_stats.caption_num_words >= 3"),
            *("--rule", "unique=NOT exact_dedup.is_image_duplicate", "--weight", "image_stats.image_entropy_bits + 1"),
        ],
        "build": ["build", "--pool", pool, "--selection", "kept", "--out", str(root / "datasets")],
        "train": ["train", "DATASET", "--out", str(root / "run"), *train_settings()],
    }


def train_settings() -> list[str]:
    """Return a model small enough to take a minute, and checkpoints close enough to be struck between."""
    values = {"model": "vit-tiny", "batch_size": 64, "samples_seen": 4800, "save_every": 10, "num_workers": 1}
    return [part for key, value in values.items() for part in ("--set", f"train.{key}={value}")]


def command(arguments: list[str], root: Path) -> list[str]:
    """Fill in the dataset folder, whose name holds a fingerprint."""
    if "DATASET" not in arguments:
        return arguments
    (dataset,) = (root / "datasets").iterdir()
    return [str(dataset) if part == "DATASET" else part for part in arguments]


def test_final_files_survive_twenty_kills(web: Path, tmp_path: Path) -> None:
    """Compare a pool, a dataset and a run made under twenty kills with those made in peace."""
    seed = int(os.environ.get("WINNOW_KILL_SEED", "0"))
    rng = random.Random(seed)
    quiet, stormy, log = tmp_path / "quiet", tmp_path / "stormy", tmp_path / "log.txt"
    kills: list[str] = []
    for name in stages(web, quiet):
        seconds = run(command(stages(web, quiet)[name], quiet), log)
        for kind in KINDS:
            delay = rng.uniform(0.1, 0.8) * seconds
            arguments = command(stages(web, stormy)[name], stormy)
            struck = kill_and_finish(arguments, kind, delay, log, rng)
            for _ in range(MAX_TRIES):
                if "finished" not in struck:
                    break
                # Nothing was left to kill: begin the stage again, and be quicker.
                delay /= 2
                shutil.rmtree(stormy / OUTPUTS[name], ignore_errors=True)
                struck = kill_and_finish(arguments, kind, delay, log, rng)
            kills.append(f"{name}: {struck}")
        run(command(stages(web, stormy)[name], stormy), log)
        assert digest_tree(stormy, ignore=("logs", "tensorboard")) == digest_tree(
            quiet, ignore=("logs", "tensorboard")
        ), f"after {name}; kills so far: {kills}"
    num_struck = sum("finished" not in kill for kill in kills)
    assert num_struck >= len(kills) * 3 // 4, f"too few kills struck a running process: {kills}"
