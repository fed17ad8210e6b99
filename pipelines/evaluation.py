"""Evaluates a run once: the results lie beside the checkpoint with what they depend on, and are taken from there while that is the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from curate.fingerprint import canonical_json
from curate.store import Store
from pipelines.recipe import OWN_DATASET, EvaluateSection
from schemas.dataset import INDEX_FILE
from schemas.progress import Progress, SilentProgress
from train.evaluation import VERSION, EvaluationOptions

EVALUATION_FILE = "evaluation.json"

Metrics = Mapping[str, Mapping[str, float]]


def evaluate_run(
    run: str, section: EvaluateSection, dataset: str, *, progress: Progress | None = None
) -> tuple[Metrics, bool]:
    """Return the metrics of a run's newest checkpoint, and whether they were there already; `dataset` is what it was trained on."""
    identity = _identity(section, run, dataset)
    metrics = _read(Store(run), identity)
    if metrics is not None:
        return metrics, True
    metrics = evaluate_model(run, list_data(section, dataset), section, progress=progress)
    Store(run).commit_json(EVALUATION_FILE, {"identity": identity, "results": metrics})
    return metrics, False


def find_evaluation(run: str, section: EvaluateSection, dataset: str) -> Metrics | None:
    """Return the metrics that `evaluate_run` would not have to measure, or None."""
    return _read(Store(run), _identity(section, run, dataset))


def evaluate_model(
    model: str,
    data: Sequence[str],
    options: EvaluationOptions,
    *,
    revision: str = "",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Metrics:
    """Evaluate a run, a checkpoint or a hub id; see `train.evaluate.evaluate`, to which this brings the parser of captions."""
    from train.evaluate import evaluate

    perturb = None
    if options.compositional:
        from pipelines.perturb import Perturber

        perturb = Perturber()
    return evaluate(
        model,
        data,
        options,
        revision=revision,
        batch_size=batch_size,
        perturb=perturb,
        progress=progress or SilentProgress(),
    )


def list_data(section: EvaluateSection, dataset: str) -> list[str]:
    """Return what a section evaluates on, `dataset` standing for the dataset of the recipe."""
    return [dataset if entry == OWN_DATASET else entry for entry in section.data]


def _identity(section: EvaluateSection, run: str, dataset: str) -> dict[str, object]:
    """Return what decides the numbers: how they are measured, the checkpoint, the data by their content, and the settings."""
    checkpoints = Store(run).list_names("checkpoints")
    settings = {item.name: getattr(section, item.name) for item in fields(EvaluationOptions)}
    return {
        "version": VERSION,
        "run": Path(run).name,
        "checkpoint": checkpoints[-1] if checkpoints else "",
        "data": [_data_identity(entry) for entry in list_data(section, dataset)],
        **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


def _data_identity(entry: str) -> str:
    folder = Store(entry)
    if folder.exists(INDEX_FILE):
        return hashlib.sha256(folder.read_bytes(INDEX_FILE)).hexdigest()
    sizes = folder.filesystem.find(folder.root, detail=True)
    listing = [(path.removeprefix(folder.root), int(info["size"])) for path, info in sorted(sizes.items())]
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def _read(run: Store, identity: Mapping[str, object]) -> Metrics | None:
    """Return the metrics of an evaluation with this identity, or None where it has to be done."""
    if not run.exists(EVALUATION_FILE):
        return None
    content = json.loads(run.read_bytes(EVALUATION_FILE))
    if canonical_json(content["identity"]) != canonical_json(identity):
        return None
    results: Metrics = content["results"]
    return results
