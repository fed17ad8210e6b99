"""Evaluates a checkpoint on several datasets and folders: `winnow evaluate`."""

import logging
from collections.abc import Sequence
from functools import partial

import fsspec
import torch

from schemas.dataset import INDEX_FILE
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from train.datacomp import find_task
from train.evaluate.attack import explain_missing, find_target
from train.evaluate.composition import composition_means
from train.evaluate.dataset import read_dataset
from train.evaluate.features import Encoder
from train.evaluate.folder import is_folder, read_folder
from train.evaluate.hub_cache import is_cached_set, read_cached_set
from train.evaluate.measure import Measure
from train.evaluate.pairs import list_pair_files, read_pairs
from train.evaluate.task import EvaluationData, ZeroShotTask
from train.evaluation import EvaluationOptions, Perturb

logger = logging.getLogger(__name__)

HUB_CACHE = "hf_cache"  # where DataComp's download script lets `datasets` put three of its tasks


def evaluate(
    checkpoint: str,
    data: Sequence[str],
    options: EvaluationOptions | None = None,
    *,
    revision: str = "",
    batch_size: int = 256,
    device: str = "auto",
    num_workers: int = 2,
    perturb: Perturb | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Return the metrics of each entry of `data`, by its name.

    `checkpoint` is a run (its newest checkpoint is taken), a checkpoint, any folder that `transformers` loads as a CLIP-like model, or a hub
    id with its pinned `revision`. An entry of `data` is a Winnow dataset, a folder in CLIP_benchmark's layout, a set in a cache of Hugging Face
    `datasets` (see `hub_cache`), a folder of such folders, or captions with wrong captions beside them (see `pairs`). `perturb` makes the wrong captions that the option `compositional` asks for.
    Shares are in 0..1; `chance_X` is what guessing scores for X.
    """
    from train.checkpoint import find_checkpoint
    from train.model import load_model

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = load_model(checkpoint if revision else find_checkpoint(checkpoint), revision=revision, device=chosen)
    return evaluate_model(
        model, data, options, batch_size=batch_size, num_workers=num_workers, perturb=perturb, progress=progress
    )


def evaluate_model(
    model: Encoder,
    data: Sequence[str],
    options: EvaluationOptions | None = None,
    *,
    batch_size: int = 256,
    num_workers: int = 2,
    perturb: Perturb | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a model in memory; see `evaluate`. The caller puts it into evaluation mode."""
    if not data:
        raise InputError("nothing to evaluate on; name a dataset or a folder in CLIP_benchmark's layout")
    wanted = options or EvaluationOptions()
    if wanted.compositional and perturb is None:
        raise InputError("compositional needs a parser of captions: evaluate with `winnow evaluate`, or give `perturb`")
    bar = progress or SilentProgress()
    # All are opened before the first is measured: what is wrong with the last of 38 is said now.
    entries = [path for entry in data for path in expand(entry)]
    opened = {entry: open_data(entry, wanted) for entry in entries}
    if wanted.target:
        _require_target(list(opened.values()), wanted.target)
    results: dict[str, dict[str, float]] = {}
    for entry, content in opened.items():
        metrics: dict[str, float] = {}
        for task in content.tasks:
            measure = Measure(model, wanted, batch_size, num_workers, perturb, partial(_start, bar, content.name))
            found = measure(task)
            again = [name for name in found if name in metrics and name.startswith("composition_")]
            if again:
                raise InputError(
                    f"{entry}: {again[0]} would be of two tasks; give the column of negatives another name"
                )
            metrics |= found
        metrics |= composition_means(metrics)
        # Two entries may bear one name; then the second goes by its path.
        results[entry if content.name in results else content.name] = metrics
    return results


def expand(path: str) -> list[str]:
    """Return the evaluation sets that `path` stands for: itself, or those directly in it, and in its `hf_cache`, where it is a folder of them."""
    filesystem, bare = fsspec.core.url_to_fs(path.rstrip("/"))
    if not filesystem.isdir(bare) or filesystem.exists(f"{bare}/{INDEX_FILE}") or _is_set(path):
        return [path]
    found = _list_folder(path)
    cache = f"{path.rstrip('/')}/{HUB_CACHE}"
    sets = [entry for entry in [*found, *(_list_folder(cache) if cache in found else [])] if _is_set(entry)]
    unscored = [entry.rsplit("/", 1)[-1] for entry in sets if _is_unscored(entry)]
    if unscored:
        logger.warning(
            "sets of DataComp without a main metric are passed over root=%s sets=%s", path, ",".join(unscored)
        )
    return [entry for entry in sets if not _is_unscored(entry)] or [path]


def open_data(path: str, options: EvaluationOptions | None = None) -> EvaluationData:
    """Open one entry of `--data`: a Winnow dataset, a folder in CLIP_benchmark's layout, a set in a cache of Hugging Face `datasets`, or captions
    with wrong captions.
    """
    wanted = options or EvaluationOptions()
    filesystem, bare = fsspec.core.url_to_fs(path)
    if path.endswith(f"/{INDEX_FILE}") or filesystem.exists(f"{bare}/{INDEX_FILE}"):
        return read_dataset(path, wanted)
    if not filesystem.exists(bare):
        raise InputError(f"{path} does not exist; give a dataset or a folder in CLIP_benchmark's layout")
    if is_cached_set(path):
        return read_cached_set(path)
    if not is_folder(path) and list_pair_files(path):
        return read_pairs(path)
    return read_folder(path, with_training=wanted.needs_training_images)


def _list_folder(path: str) -> list[str]:
    filesystem, bare = fsspec.core.url_to_fs(path.rstrip("/"))
    names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(bare, detail=False))
    return [f"{path.rstrip('/')}/{name}" for name in names]


def _is_set(path: str) -> bool:
    return is_folder(path) or is_cached_set(path)


def _is_unscored(entry: str) -> bool:
    """Return whether this is one of DataComp's sets without a main metric, whose labels are another layout."""
    task = find_task(entry.rsplit("/", 1)[-1])
    return task is not None and not task.metric


def _require_target(opened: Sequence[EvaluationData], target: str) -> None:
    tasks = [task for content in opened for task in content.tasks if isinstance(task, ZeroShotTask)]
    if not any(find_target(task.classnames, target) >= 0 for task in tasks):
        raise explain_missing([name for task in tasks for name in task.classnames], target)


def _start(bar: Progress, name: str, total: int) -> Progress:
    bar.start(f"evaluate {name}", total, "images")
    return bar
