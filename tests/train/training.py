"""A dataset that can be learned, the smallest models, and a script to train in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("square", "disc", "cross", "bar")
PLACES = {"left": 0.25, "middle": 0.5, "right": 0.75}
# Every picture has another caption; 48 of them.
SCENES = tuple(product(COLOURS, SHAPES, PLACES))

# A model that takes milliseconds per step, and settings that let it learn within a hundred.
TINY = {
    "model": "vit-tiny",
    "model_options": {
        "image_size": 32,
        "patch_size": 8,
        "image_width": 64,
        "image_layers": 2,
        "image_heads": 2,
        "text_width": 64,
        "text_layers": 2,
        "text_heads": 2,
        "context_length": 16,
        "vocab_size": 600,
        "embed_dim": 32,
    },
    "batch_size": 16,
    "lr": 2e-3,
    "warmup_steps": 10,
    "weight_decay": 0.1,
    "log_every": 1,
    "save_every": 5,
    "num_workers": 0,
    "num_threads": 1,
}

# `die` names the moment at which the process kills itself, once: a number of samples, or the checkpoint it is about to publish.
_SCRIPT = """
import json, logging, os, signal, sys
from pathlib import Path
from pydantic import TypeAdapter
from schemas.progress import SilentProgress
from train import checkpoint
from train.config import TrainConfig
from train.trainer import train

dataset, out, settings, die = sys.argv[1:]
logging.basicConfig(level="INFO")

def die_once(moment):
    marker = Path(out + ".died")
    if moment == die and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

class Progress(SilentProgress):
    done = 0
    def advance(self, amount, **fields):
        if "loss" in fields:  # opening a dataset advances too
            self.done += amount
            die_once(str(self.done))

publish = checkpoint.publish_folder
def publish_or_die(staging, target):
    die_once(target.name)
    publish(staging, target)

checkpoint.publish_folder = publish_or_die
train(dataset, out, TypeAdapter(TrainConfig).validate_python(json.loads(settings)), progress=Progress())
"""


def draw_scene(number: int, variant: int, size: int = 40) -> np.ndarray:
    """Return scene `number % 48` on a grey ground that differs with `variant`."""
    colour, shape, place = SCENES[number % len(SCENES)]
    rng = np.random.default_rng([number, variant])
    image = rng.normal(rng.uniform(100, 150), 6, (size, size, 3)).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[0:size, 0:size] / size
    dx, dy = np.abs(x - PLACES[place]), np.abs(y - 0.5)
    mask = {
        "square": (dx < 0.18) & (dy < 0.18),
        "disc": dx**2 + dy**2 < 0.2**2,
        "cross": ((dx < 0.06) & (dy < 0.25)) | ((dy < 0.06) & (dx < 0.25)),
        "bar": (dx < 0.22) & (dy < 0.08),
    }[shape]
    image[mask] = COLOURS[colour]
    return image


def write_scenes(folder: Path, copies: int = 2) -> Path:
    """Write a dataset with `copies` variants of every scene."""
    samples = [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_scene(number, number // len(SCENES)), quality=90),
            captions={"alt_text": f"a {colour} {shape} on the {place}"},
        )
        for number in range(copies * len(SCENES))
        for colour, shape, place in [SCENES[number % len(SCENES)]]
    ]
    return write_dataset(folder, samples)


def run_training(
    dataset: Path, out: Path, settings: Mapping[str, object], *, die: str = "", launcher: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Train in a process of its own.

    `die`: the moment at which it kills itself, "160" (samples) or "step_00000010" (before that checkpoint gets its name).
    `launcher`: arguments that come before the script, such as torchrun's.
    """
    script = out.parent / "train_script.py"
    script.write_text(_SCRIPT)
    # The caller's own, behind: libraries may be there and nowhere else.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    out.with_name(f"{out.name}.died").unlink(missing_ok=True)
    return subprocess.run(
        [sys.executable, *launcher, str(script), str(dataset), str(out), json.dumps(settings), die],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        check=False,
    )


def read_bytes(run: Path) -> dict[str, bytes]:
    """Return every file of a run that two equal runs must share, by its path in the run."""
    files = {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    return {str(path): data for path, data in files.items() if path.parts[0] not in {"logs", "tensorboard"}}
