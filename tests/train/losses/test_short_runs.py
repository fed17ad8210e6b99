"""Every loss in a real run of the smallest model: it falls, a kill changes nothing, parts give the same curve."""

import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.train.losses.scenes import COLUMNS_FILE, write_rich_scenes
from tests.train.training import TINY, read_bytes, run_training
from train.config import TrainConfig
from train.evaluate import evaluate
from train.loss import discover_losses
from train.metrics import read_metrics
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")

STEPS = 24
# Losses in the company that their papers keep them in; the others stand alone.
COMPANY = {
    "cleanclip": {"info_nce": 1.0},
    "coca": {"info_nce": 1.0},
    "concept_distillation": {"info_nce": 1.0},
    "cyclip": {"info_nce": 1.0},
    "prototypes": {"info_nce": 1.0},
    "rankclip": {"info_nce": 1.0},
    "silc": {"info_nce": 1.0},
    "simclr": {"info_nce": 1.0},
    "sparc": {"info_nce": 0.5},
}
OPTIONS = {
    "alip": {"momentum": 0.5},
    "coca": {"weight": 2.0, "layers": 1, "num_queries": 4},
    "declip": {"bank_size": 24, "hidden": 32},
    "dreamlip": {"count": 2},
    "filip": {"width": 32, "num_tokens": 8},
    "lit": {"embedding": "teacher_image_embedding"},
    "longclip": {"short": "rewrite", "components": 4},
    "momentum": {"queue_size": 24, "momentum": 0.5, "hardest": 20, "cap": 0.98},
    "mlcd": {"share": 0.8},
    "multi_text": {"count": 2},
    "prototypes": {"num_prototypes": 12, "num_local": 1, "local_size": 16, "hidden": 32, "frozen_steps": 4},
    "silc": {"num_local": 2, "local_size": 16, "hidden": 128, "num_outputs": 64, "momentum": 0.98},
    "simclr": {"hidden": 64, "width": 32},
}
# Whatever has buffers, queues or a teacher.
STATEFUL = ("alip", "declip", "mlcd", "momentum", "otter", "prototypes", "silc")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich_scenes(tmp_path_factory.mktemp("rich"))


def settings(name: str, dataset: Path, **changes: object) -> dict[str, object]:
    losses: Mapping[str, object] = {**COMPANY.get(name, {}), name: OPTIONS.get(name, 1.0)}
    columns = [str(dataset.parent / COLUMNS_FILE)]
    return {**TINY, "losses": losses, "columns": columns, "samples_seen": 16 * STEPS, "save_every": 1000, **changes}


def curve(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("name", discover_losses())
def test_the_loss_falls_and_the_run_evaluates(name: str, dataset: Path, tmp_path: Path) -> None:
    evaluation = {"eval_data": (str(dataset),), "eval_every": STEPS}
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings(name, dataset, **evaluation)))
    found = curve(tmp_path / "run")
    assert len(found) == STEPS
    # ALIP's weights rise at first, as its running means come down from 1.
    first = max(found[:6]) if name == "alip" else np.mean(found[:3])
    assert np.mean(found[-3:]) < first - 0.02 * abs(first)
    # What is saved scores what the model in memory scored, but for near-ties, and gives numbers: one that does not finds nothing.
    ((data, metrics),) = evaluate(str(tmp_path / "run"), [str(dataset)], num_workers=0, device="cpu").items()
    *_, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {metric: last[f"{data}/{metric}"] for metric in metrics} == pytest.approx(metrics, abs=0.02)
    assert metrics["num_images"] == 96
    assert metrics["text_to_image_recall@10"] > 0


@pytest.mark.parametrize("name", ["declip", "dreamlip", "lit", "catlip", "silc"])
def test_parts_give_the_same_curve(name: str, dataset: Path, tmp_path: Path) -> None:
    whole, parts = (settings(name, dataset, samples_seen=16 * 6, grad_accumulation=num_parts) for num_parts in (1, 4))
    train(str(dataset), str(tmp_path / "whole"), TrainConfig(**whole))
    train(str(dataset), str(tmp_path / "parts"), TrainConfig(**parts))
    np.testing.assert_allclose(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=2e-3)


def test_killed_runs_with_state_end_like_undisturbed_ones(dataset: Path, tmp_path: Path) -> None:
    losses = {name: OPTIONS.get(name, 1.0) for name in STATEFUL}
    config = settings("info_nce", dataset, losses=losses, save_every=3, samples_seen=16 * 8, sample_losses=True)
    assert run_training(dataset, tmp_path / "one", config).returncode == 0
    process = run_training(dataset, tmp_path / "other", config, die="80")
    assert process.returncode == -signal.SIGKILL, process.stdout
    process = run_training(dataset, tmp_path / "other", config)
    assert "from_step=3 " in process.stdout
    ours, theirs = read_bytes(tmp_path / "other"), read_bytes(tmp_path / "one")
    names = {name: data for name, data in theirs.items() if name != "recipe.yaml"}
    assert {name: ours[name] for name in names} == names
    assert "sample_losses.parquet" in names


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


# Frozen towers, layers and state of the losses' own, batch normalisation, a teacher: what processes must agree on.
@pytest.mark.parametrize("names", [("catlip",), ("lit", "siglip"), (*STATEFUL, "coca", "simclr", "filip")])
def test_two_processes_give_the_same_curve(names: tuple[str, ...], dataset: Path, tmp_path: Path) -> None:
    losses = {name: OPTIONS.get(name, 1.0) for name in names}
    config = settings("info_nce", dataset, losses=losses, samples_seen=16 * 6)
    if "lit" in names:
        # A locked tower comes from somewhere: here from a run, which stands for its newest checkpoint.
        before = settings("info_nce", dataset, samples_seen=16)
        train(str(dataset), str(tmp_path / "before"), TrainConfig(**before))
        config = {key: value for key, value in config.items() if not key.startswith("model")}
        config |= {"losses": {**losses, "lit": 1.0}, "init": str(tmp_path / "before")}
    process = run_training(dataset, tmp_path / "two", config, launcher=TORCHRUN)
    assert process.returncode == 0, process.stdout
    assert "processes=2" in process.stdout
    train(str(dataset), str(tmp_path / "one"), TrainConfig(**config))
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=2e-3)
