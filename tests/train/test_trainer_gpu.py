"""Training on a GPU: the same runs as on a CPU, up to what its arithmetic rounds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.training import TINY, run_training, write_scenes
from train.config import TrainConfig
from train.metrics import read_metrics
from train.model import load_model
from train.trainer import train

pytestmark = pytest.mark.gpu

EXACT = {**TINY, "samples_seen": 160, "precision": "fp32"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


@pytest.fixture(scope="module")
def plain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of ten steps in float32."""
    return run(dataset, tmp_path_factory.mktemp("plain"), EXACT)


def run(dataset: Path, folder: Path, settings: dict[str, object]) -> list[float]:
    train(str(dataset), str(folder / "run"), TrainConfig(**settings))
    return [record["loss"] for record in read_metrics(folder / "run" / "metrics.jsonl")]


def test_a_cpu_loses_the_same(
    dataset: Path, plain: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run_training(dataset, tmp_path / "run", EXACT)
    assert result.returncode == 0, result.stdout
    assert "device=cpu" in result.stdout
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    np.testing.assert_allclose(plain, losses, rtol=1e-3)


def test_a_killed_run_goes_on_as_if_nothing_were(dataset: Path, plain: list[float], tmp_path: Path) -> None:
    assert run_training(dataset, tmp_path / "run", EXACT, die="112").returncode == -9
    assert (tmp_path / "run" / "checkpoints" / "step_00000005").is_dir()
    result = run_training(dataset, tmp_path / "run", EXACT)
    assert result.returncode == 0, result.stdout
    assert "from_step=5" in result.stdout
    assert "device=cuda" in result.stdout
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    np.testing.assert_allclose(losses, plain, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"grad_accumulation": 4}, 1e-4),
        ({"num_workers": 2}, 1e-4),
        ({"gradient_checkpointing": True}, 1e-4),
        ({"precision": "bf16"}, 3e-2),
        ({"decode": "gpu"}, 5e-2),
        ({"decode": "gpu", "num_workers": 2, "grad_accumulation": 2}, 5e-2),
    ],
    ids=str,
)
def test_other_ways_lose_the_same(
    dataset: Path, plain: list[float], tmp_path: Path, change: dict[str, object], tolerance: float
) -> None:
    np.testing.assert_allclose(run(dataset, tmp_path, EXACT | change), plain, rtol=tolerance)


@pytest.mark.timeout(600)
def test_compiled_towers_lose_the_same_and_learn(dataset: Path, plain: list[float], tmp_path: Path) -> None:
    np.testing.assert_allclose(run(dataset, tmp_path, EXACT | {"compile": True}), plain, rtol=1e-2)


def test_bf16_is_the_default_and_learns(dataset: Path, tmp_path: Path) -> None:
    losses = run(dataset, tmp_path, {**TINY, "samples_seen": 1600, "save_every": 100})
    assert np.mean(losses[-5:]) < 0.5 * np.log(TINY["batch_size"])
    model = load_model(tmp_path / "run" / "checkpoints" / "step_00000100")
    assert model.device.type == "cpu"
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}


def test_one_process_of_a_group_uses_nccl(dataset: Path, plain: list[float], tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    result = run_training(dataset, tmp_path / "run", EXACT | {"sharding": True}, launcher=launcher)
    assert result.returncode == 0, result.stdout
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    np.testing.assert_allclose(losses, plain, rtol=1e-4)
