"""Checkpoints: folders that `transformers` loads, with what training needs to go on exactly.

`RUN/checkpoints/step_00001234/` holds `config.json`, `model.safetensors`, the tokenizer, `preprocessor_config.json`, and beside them
`training.json` and `optimizer.safetensors`. A folder gets its name when every byte is on disk, so the newest named one is the one
to go on from. Equal states give equal bytes.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from schemas.errors import InputError, StaleDatasetError, WinnowError
from schemas.model_layout import conversion_hint
from train.model import ImageTextModel

CHECKPOINTS = "checkpoints"
TRAINING_FILE = "training.json"
OPTIMIZER_FILE = "optimizer.safetensors"
_FORMAT = "winnow-checkpoint"
_VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")
_STAGING_SUFFIX = ".staging"


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """How far a run has come, and what it is a run of."""

    step: int  # updates made
    samples_seen: int
    dataset: str  # name of the dataset
    dataset_fingerprint: str
    config: Mapping[str, object]  # every setting of the run


def save_checkpoint(
    run: Path,
    state: TrainState,
    model: ImageTextModel,
    optimizer_state: Mapping[str, torch.Tensor],
    tokenizer_folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint and return its folder; a crash at any moment leaves either the whole folder or none.

    `weights` are the network's where its own are not whole.
    """
    target = run / CHECKPOINTS / f"step_{state.step:08d}"
    staging = target.with_name(f".{target.name}{_STAGING_SUFFIX}")
    _remove_staging(run)
    try:
        staging.mkdir(parents=True)
        _write_checkpoint(staging, state, model, optimizer_state, tokenizer_folder, weights)
        publish_folder(staging, target)
    except (OSError, SafetensorError) as error:
        raise WinnowError(
            f"{target} cannot be written: {error}; make room there, and the same command goes on from the checkpoint before"
        ) from error
    return target


def _write_checkpoint(
    folder: Path,
    state: TrainState,
    model: ImageTextModel,
    optimizer_state: Mapping[str, torch.Tensor],
    tokenizer_folder: Path,
    weights: Mapping[str, torch.Tensor] | None,
) -> None:
    model.save(folder, weights)
    # The files themselves, because a tokenizer that was loaded and saved again is written with other keys.
    for file in sorted(tokenizer_folder.iterdir()):
        shutil.copyfile(file, folder / file.name)
    tensors = {name: value.detach().cpu().contiguous() for name, value in optimizer_state.items()}
    save_file(tensors, folder / OPTIMIZER_FILE)
    content = {"format": _FORMAT, "version": _VERSION, **asdict(state)}
    (folder / TRAINING_FILE).write_text(json.dumps(content, indent=2) + "\n")
    for path in folder.iterdir():  # safetensors writes files for their owner alone
        path.chmod((folder / TRAINING_FILE).stat().st_mode)


def load_state(folder: Path) -> TrainState:
    """Read how far a checkpoint is."""
    path = folder / TRAINING_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {TRAINING_FILE}: it is a model, not a checkpoint of a run") from error
    if content.pop("format", None) != _FORMAT or content.pop("version", None) != _VERSION:
        raise StaleDatasetError(
            f"{path} is not of this release; go on with the release that wrote it, or start a new run"
        )
    return TrainState(**content)


def load_optimizer_state(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors that `save_checkpoint` was given as `optimizer_state`."""
    from safetensors.torch import load_file

    return dict(load_file(folder / OPTIMIZER_FILE))


def list_checkpoints(run: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a run by step, in order."""
    folder = run / CHECKPOINTS
    found = [(match, path) for path in folder.glob("step_*") if (match := _NAME.fullmatch(path.name))]
    return dict(sorted((int(match[1]), path) for match, path in found))


def find_checkpoint(run_or_checkpoint: str | Path) -> Path:
    """Return the model folder meant by a run (its newest checkpoint), or by a checkpoint or any other model folder (itself)."""
    path = Path(run_or_checkpoint)
    checkpoints = list_checkpoints(path)
    if checkpoints:
        return checkpoints[max(checkpoints)]
    if (path / "config.json").exists():
        return path
    raise InputError(
        f"{path} is neither a run with a checkpoint nor a model folder (no {CHECKPOINTS}/step_*, no config.json); give a run, one of its "
        f"checkpoints, a folder that save_pretrained wrote, or a hub id with its revision{conversion_hint(path)}"
    )


def remove_old_checkpoints(run: Path, *, keep_last: int, keep_every: int, save_every: int, last_step: int) -> None:
    """Keep the newest `keep_last`, every multiple of `keep_every`, and remove the rest.

    A checkpoint that a signal made between two multiples of `save_every` goes as soon as a newer one exists: so the folders left at the
    end are those of a run that was never stopped.
    """
    _remove_staging(run)
    checkpoints = list_checkpoints(run)
    newest = max(checkpoints, default=0)
    regular = [step for step in checkpoints if step % save_every == 0 or step == last_step]
    kept = {newest, *regular[-keep_last:]}
    for step, path in checkpoints.items():
        if step not in kept and not (keep_every and step % keep_every == 0 and step in regular):
            # Renamed first: a folder that keeps its name is whole, even while it is being removed.
            doomed = path.with_name(f".{path.name}{_STAGING_SUFFIX}")
            path.rename(doomed)
            shutil.rmtree(doomed)


@contextmanager
def new_model_folder(out: str) -> Iterator[Path]:
    """Give a folder to write a model into, which becomes `out` at the end of the block if nothing was raised; `out` may not be there."""
    target = Path(out)
    if target.exists():
        raise InputError(f"{out} is there already; give the new model a folder of its own")
    staging = target.with_name(f".{target.name}{_STAGING_SUFFIX}")
    shutil.rmtree(staging, ignore_errors=True)  # of an attempt that was stopped
    staging.mkdir(parents=True)
    try:
        yield staging
        for file in staging.glob("*.safetensors"):
            # Its writer leaves files that nobody else may read; the folder's own mode is what the umask lets.
            file.chmod(staging.stat().st_mode & 0o666)
        publish_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_folder(staging: Path, target: Path) -> None:
    """Give a folder its name once everything in it is on disk."""
    for file in staging.iterdir():
        _sync(file)
    _sync(staging)
    staging.rename(target)
    _sync(target.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all; what a crash leaves is overwritten by the next attempt."""
    staging = path.with_name(f".{path.name}{_STAGING_SUFFIX}")
    staging.write_bytes(data)
    _sync(staging)
    staging.replace(path)
    _sync(path.parent)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as a .npy file, whole or not at all, in a folder that is made where it is missing."""
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue())


def _remove_staging(run: Path) -> None:
    # One process writes a run (it holds the run's lock), so whatever is unfinished here was left by a dead one.
    for path in (run / CHECKPOINTS).glob(f".*{_STAGING_SUFFIX}"):
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
