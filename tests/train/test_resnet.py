"""ResNet towers: pooled to a vector, exact however a batch is shared, from random weights and from a pretrained one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from tests.train.training import TINY, run_training, write_scenes
from train.evaluate import evaluate
from train.evaluation import EvaluationOptions
from train.metrics import read_metrics
from train.model import load_model
from train.request import Patches, Pooled, View
from train.resnet import PooledResNetConfig, PooledResNetModel, pretrained_config

SHAPE = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"}
OPTIONS = {
    **TINY["model_options"],
    "image_tower": "resnet",
    "image_depths": [1, 1, 1],
    "image_widths": [32, 64, 128],
}
SETTINGS = {**TINY, "model_options": OPTIONS}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


def test_a_picture_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    tower = PooledResNetModel(PooledResNetConfig(**SHAPE, hidden_size=32)).train()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tower.modules())
    pictures = torch.randn(5, 3, 32, 32)
    whole = tower(pictures).pooler_output
    assert whole.shape == (5, 32)
    torch.testing.assert_close(whole[:1], tower(pictures[:1]).pooler_output, rtol=1e-4, atol=1e-5)


def test_a_pretrained_one_keeps_its_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = ResNetForImageClassification(ResNetConfig(**SHAPE)).train()
    classifier(torch.randn(8, 3, 32, 32) * 3 + 1)  # gives its normalisation statistics of its own
    classifier.save_pretrained(tmp_path / "resnet")
    config = pretrained_config(ResNetConfig.from_pretrained(tmp_path / "resnet"))
    tower = PooledResNetModel.from_pretrained(tmp_path / "resnet", config=config).train()
    plain = ResNetModel.from_pretrained(tmp_path / "resnet").eval()
    pictures = torch.randn(4, 3, 32, 32)
    for _ in range(2):  # training passes change nothing
        pooled = tower(pictures).pooler_output
    torch.testing.assert_close(pooled, plain(pictures).pooler_output.flatten(1))
    pooled.sum().backward()
    assert all(value.grad is not None for value in tower.parameters())


def test_a_run_learns_saves_and_evaluates(dataset: Path, tmp_path: Path) -> None:
    process = run_training(dataset, tmp_path / "run", {**SETTINGS, "samples_seen": 16 * 40})
    assert process.returncode == 0, process.stdout
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    model = load_model(tmp_path / "run" / "checkpoints" / "step_00000040")
    assert (model.shape.image_width, model.image_size) == (128, 32)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = model({View().key: images}, (View(), Pooled(), Patches()))
    torch.testing.assert_close(found[View().key], model.encode_image(images))
    assert found[Pooled().key].shape == (3, 128)
    assert found[Patches().key].shape == (3, 4, 128)
    (metrics,) = evaluate(
        str(tmp_path / "run"), [str(dataset)], EvaluationOptions(), num_workers=0, device="cpu"
    ).values()
    assert metrics["mean_recall@1"] > 3 * metrics["chance_text_to_image_recall@1"]


@pytest.mark.slow
def test_parts_processes_and_a_kill_give_the_same_curve(dataset: Path, tmp_path: Path) -> None:
    config = {**SETTINGS, "samples_seen": 16 * 6, "save_every": 3}
    for name, changes, launcher in (
        ("whole", {}, ()),
        ("parts", {"grad_accumulation": 4}, ()),
        ("two", {}, TORCHRUN),
    ):
        process = run_training(dataset, tmp_path / name, {**config, **changes}, launcher=launcher)
        assert process.returncode == 0, process.stdout
    run_training(dataset, tmp_path / "killed", config, die="64")
    assert "from_step=3 " in run_training(dataset, tmp_path / "killed", config).stdout
    curves = {
        name: [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts", "two", "killed")
    }
    assert curves["killed"] == curves["whole"]
    for name in ("parts", "two"):
        np.testing.assert_allclose(curves[name], curves["whole"], rtol=2e-3, err_msg=name)
