"""Evaluates a checkpoint on several datasets and folders: `winnow evaluate`."""

from collections.abc import Sequence

import fsspec
import torch

from schemas.dataset import INDEX_FILE
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from train.evaluate.dataset import read_dataset
from train.evaluate.features import Encoder, encode_images, encode_texts
from train.evaluate.folder import read_folder
from train.evaluate.retrieval import UniqueTexts, measure_retrieval
from train.evaluate.task import EvaluationData, RetrievalTask, ZeroShotTask
from train.evaluate.zeroshot import encode_classes, measure_zeroshot


def evaluate(
    checkpoint: str,
    data: Sequence[str],
    *,
    revision: str = "",
    batch_size: int = 256,
    device: str = "auto",
    num_workers: int = 2,
    label_column: str = "",
    templates: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Return the metrics of each entry of `data`, by its name.

    `checkpoint` is a run (its newest checkpoint is taken), a checkpoint, any folder that `transformers` loads as a CLIP-like model, or a hub
    id with its pinned `revision`. An entry of `data` is a Winnow dataset or a folder in CLIP_benchmark's layout. With a `label_column`, Winnow
    datasets are classified too. Shares are in 0..1; `chance_X` is what guessing scores for X.
    """
    from train.checkpoint import find_checkpoint
    from train.model import load_model

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = load_model(checkpoint if revision else find_checkpoint(checkpoint), revision=revision, device=chosen)
    return evaluate_model(
        model,
        data,
        batch_size=batch_size,
        num_workers=num_workers,
        label_column=label_column,
        templates=templates,
        progress=progress,
    )


def evaluate_model(
    model: Encoder,
    data: Sequence[str],
    *,
    batch_size: int = 256,
    num_workers: int = 2,
    label_column: str = "",
    templates: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a model in memory; see `evaluate`. The caller puts it into evaluation mode."""
    if not data:
        raise InputError("nothing to evaluate on; name a dataset or a folder in CLIP_benchmark's layout")
    bar = progress or SilentProgress()
    results: dict[str, dict[str, float]] = {}
    for entry in data:
        opened = open_data(entry, label_column=label_column, templates=templates)
        metrics: dict[str, float] = {}
        for task in opened.tasks:
            bar.start(f"evaluate {opened.name}", len(task.images), "images")
            try:
                metrics |= _measure(model, task, batch_size, num_workers, bar)
            finally:
                bar.close()
        # Two entries may bear one name; then the second goes by its path.
        results[entry if opened.name in results else opened.name] = metrics
    return results


def open_data(path: str, *, label_column: str = "", templates: Sequence[str] = ()) -> EvaluationData:
    """Open one entry of `--data`: a Winnow dataset or a folder in CLIP_benchmark's layout."""
    filesystem, bare = fsspec.core.url_to_fs(path)
    if path.endswith(f"/{INDEX_FILE}") or filesystem.exists(f"{bare}/{INDEX_FILE}"):
        return read_dataset(path, label_column=label_column, templates=templates)
    if not filesystem.exists(bare):
        raise InputError(f"{path} does not exist; give a dataset or a folder in CLIP_benchmark's layout")
    return read_folder(path)


def _measure(
    model: Encoder, task: RetrievalTask | ZeroShotTask, batch_size: int, num_workers: int, bar: Progress
) -> dict[str, float]:
    images = encode_images(model, task.images, batch_size=batch_size, num_workers=num_workers, progress=bar)
    if isinstance(task, RetrievalTask):
        texts = UniqueTexts.of(task.captions)
        return measure_retrieval(images, encode_texts(model, texts.texts, batch_size=batch_size), texts)
    classes = encode_classes(
        lambda prompts: encode_texts(model, prompts, batch_size=batch_size), task.classnames, task.templates
    )
    return measure_zeroshot(images, classes, task.labels)
