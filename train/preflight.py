"""What can be known to be wrong before a run begins, said before it begins: not in its third hour, and not by its workers."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np

from schemas.errors import InputError, StaleDatasetError
from train.config import TrainConfig
from train.curriculum import curriculum_share
from train.evaluate.suite import expand, open_data
from train.index import Dataset
from train.loss import Objective
from train.rates import check_rates
from train.reader import TarFile
from train.request import wanted_views
from train.sampler import Weights
from train.schedule import EpochShape

_ASKED_AT_ONCE = 32
# Files and folders of a run, or of what began one, besides those whose names begin with a dot.
_OF_A_RUN = {"tokenizer", "checkpoints", "logs", "tensorboard", "sampling", "metrics.jsonl", "recipe.yaml"}


def check_settings(config: TrainConfig, num_processes: int) -> Objective:
    """Return the losses of a configuration that `num_processes` can run, whatever its dataset."""
    objective = Objective(config.losses)
    share = num_processes * config.grad_accumulation
    if config.batch_size % share:
        raise InputError(
            f"batch_size {config.batch_size} does not divide into {num_processes} processes x {config.grad_accumulation} parts; "
            f"use a multiple of {share}"
        )
    if config.batch_size % objective.batch_parts:
        raise InputError(
            f"batch_size {config.batch_size} does not divide into the losses' {objective.batch_parts} groups; use a multiple"
        )
    is_pretrained = bool(config.init or (config.towers and config.towers.image))
    if objective.locks_images and wanted_views(objective.needs) and not is_pretrained:
        raise InputError(
            "the loss lit locks the image tower, which would stay as random as it starts; set init or towers.image to a pretrained one, "
            "or the loss's option embedding to a column of stored embeddings"
        )
    return objective


def check_output(run: Path) -> None:
    """Raise where a new run would lie among files that are no run's."""
    if not run.is_dir() or (run / "checkpoints").exists():
        return
    foreign = sorted(
        path.name for path in run.iterdir() if not path.name.startswith(".") and path.name not in _OF_A_RUN
    )
    if foreign:
        raise InputError(f"{run} holds {', '.join(foreign[:3])} and no run; give another --out folder")


def check_data(data: Dataset, config: TrainConfig, objective: Objective) -> None:
    """Raise where the dataset's texts or draws cannot be what the settings say."""
    shares = dict(zip(data.mixture.columns, data.mixture.probabilities, strict=True))
    drawn = [name for name, share in shares.items() if share]
    if objective.needs_one_caption and len(drawn) > 1:
        raise InputError(
            f"distillation compares a text with the stored embedding of one caption, and the mixture draws from {', '.join(drawn)}; "
            "name the embedded one in the loss's option caption, or draw it alone with train.captions"
        )
    check_rates(config, objective.needs)


def check_draws(config: TrainConfig, shape: EpochShape, weights: Weights) -> None:
    """Raise where some epoch of the run would need more draws than samples may have."""
    num_weighted = int(np.count_nonzero(weights))
    sampling = config.sampling
    if not num_weighted or shape.num_steps < 1:
        return
    if sampling and sampling.repetition and sampling.repetition.max_draws:
        most = num_weighted * sampling.repetition.max_draws
        needed = round(shape.num_epochs * shape.num_steps) * shape.batch_size
        if needed > most:
            raise InputError(
                f"the run needs {needed} draws, and sampling.repetition.max_draws leaves {most}; train fewer epochs, or raise max_draws"
            )
    if not config.replacement and sampling and sampling.curriculum:
        epochs = range(math.ceil(shape.num_epochs))
        shares = [curriculum_share(sampling.curriculum, epoch, shape.num_epochs) for epoch in (epochs[0], epochs[-1])]
        fewest = max(1, round(min(shares) * num_weighted))
        if shape.epoch_samples > fewest:
            raise InputError(
                f"an epoch draws {shape.epoch_samples} different samples (replacement: false), and sampling.curriculum leaves {fewest} of "
                f"{num_weighted} at its narrowest; set epoch_samples to {fewest} or less, or leave replacement at true"
            )


def check_files(tars: Iterable[TarFile]) -> None:
    """Raise where a tar of the dataset is missing or has another length than the index says."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        for tar, found in threads.map(_measure, tars):
            if found < 0 or tar.num_bytes not in {-1, found}:
                state = "is missing" if found < 0 else f"has {found} bytes, the index says {tar.num_bytes}"
                raise StaleDatasetError(f"{tar.location} {state}; copy it there again, or build the dataset again")


def check_evaluation(config: TrainConfig) -> None:
    """Raise where what is evaluated on the way cannot be opened."""
    for entry in config.eval_data:
        for path in expand(entry):
            open_data(path)


def _measure(tar: TarFile) -> tuple[TarFile, int]:
    filesystem, path = fsspec.core.url_to_fs(tar.location)
    try:
        return tar, int(filesystem.size(path))
    except FileNotFoundError:
        return tar, -1
