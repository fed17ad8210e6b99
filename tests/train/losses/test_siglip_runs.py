"""Runs of the sigmoid loss from a SigLIP and from one's own run: where scale and bias start, what is saved, going on, several processes."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, SiglipConfig, SiglipModel

from tests.train.losses.scenes import COLUMNS_FILE, write_rich_scenes
from tests.train.test_run_schedule import Break
from tests.train.training import TINY, read_bytes, run_training, write_scenes
from train.checkpoint import load_optimizer_state
from train.config import TrainConfig
from train.loss import Objective, Outputs
from train.metrics import read_metrics
from train.model import load_model
from train.request import Text, View
from train.tokenizer import train_tokenizer
from train.trainer import TrainReport, _build_objective, train

pytestmark = pytest.mark.usefixtures("keep_threads")

SCALE, BIAS = 117.3, -12.9
LOSS_BIAS = "weight.objective.losses.siglip.bias"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# A rate at which nothing moves that float32 could tell.
STILL = 1e-12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 600, "max_position_embeddings": 12, "projection_size": 32},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(4)
    model = SiglipModel(config)
    model.logit_scale.data.fill_(math.log(SCALE))
    model.logit_bias.data.fill_(BIAS)
    model.save_pretrained(folder)
    train_tokenizer(["a red disc on the left", "a green bar"] * 3, 560, 12).save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_center_crop": False}))
    return folder


def settings(**changes: Any) -> dict[str, Any]:
    """Return six steps; with `init` the shape is its own."""
    base = {**TINY, "losses": {"siglip": 1.0}, "samples_seen": 16 * 6, "save_every": 2, "keep_last": 9, **changes}
    return {name: value for name, value in base.items() if name != "model_options" or "init" not in changes}


def run(dataset: Path, out: Path, **changes: Any) -> TrainReport:
    return train(str(dataset), str(out), TrainConfig(**settings(**changes)))


def learned_bias(checkpoint: Path) -> float:
    return load_optimizer_state(checkpoint)[LOSS_BIAS].item()


def test_the_first_loss_is_that_of_transformers(siglip: Path) -> None:
    model = load_model(siglip)
    objective = Objective({"siglip": 1.0})
    columns: Any = SimpleNamespace(num_labels={}, widths={})
    _build_objective(objective, model, columns, TrainConfig(**settings(init=str(siglip))))
    pictures = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids, mask = model.tokenize([f"a {name} disc" for name in ("red", "green", "blue", "big", "small", "flat")])
    inputs = {View().key: pictures, f"{Text().key}.ids": ids, f"{Text().key}.mask": mask}
    answer = dict(model(inputs, (View(), Text())))
    found, _ = objective(Outputs(logit_scale=answer.pop("logit_scale"), tensors=answer))
    theirs = SiglipModel.from_pretrained(siglip)
    pixels = (pictures.float() / 255 - 0.5) / 0.5
    expected = theirs(input_ids=ids, pixel_values=pixels, return_loss=True).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.backward()
    expected.backward()
    torch.testing.assert_close(objective.logit_bias.grad, theirs.logit_bias.grad.reshape(()), rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    torch.testing.assert_close(model.logit_scale.grad, theirs.logit_scale.grad, rtol=1e-4, atol=1e-6)


def test_scale_and_bias_start_where_the_checkpoint_is(dataset: Path, siglip: Path, tmp_path: Path) -> None:
    report = run(dataset, tmp_path / "still", init=str(siglip), lr=STILL)
    assert [record["logit_scale"] for record in read_metrics(report.run / "metrics.jsonl")] == pytest.approx(
        [SCALE] * 6, rel=1e-6
    )
    saved = AutoModel.from_pretrained(report.checkpoint)
    assert type(saved) is SiglipModel
    assert saved.logit_bias.item() == pytest.approx(BIAS, rel=1e-6)
    assert saved.logit_scale.exp().item() == pytest.approx(SCALE, rel=1e-6)


def test_every_checkpoint_carries_the_bias_learned_so_far(dataset: Path, siglip: Path, tmp_path: Path) -> None:
    report = run(dataset, tmp_path / "run", init=str(siglip), lr=1e-2, warmup_steps=0)
    found = []
    for step in (2, 4, 6):
        folder = report.run / "checkpoints" / f"step_{step:08d}"
        found.append(load_file(folder / "model.safetensors")["logit_bias"].item())
        assert found[-1] == learned_bias(folder)
        assert "logit_bias" not in json.loads((folder / "config.json").read_text())
    assert len({*found, BIAS}) == 4
    # Another loss leaves it as it came.
    other = run(dataset, tmp_path / "other", init=str(report.checkpoint), losses={"info_nce": 1.0}, lr=1e-2)
    assert load_model(other.checkpoint).logit_bias == found[-1]


@pytest.mark.parametrize("tower", ["vit", "convnext"])
def test_ones_own_run_keeps_its_bias_whatever_the_architecture(dataset: Path, tower: str, tmp_path: Path) -> None:
    shape = {"convnext": {"image_tower": "convnext", "image_depths": (1, 1), "image_widths": (8, 16), "patch_size": 4}}
    options = {**TINY["model_options"], **shape.get(tower, {})}  # type: ignore[dict-item]
    first = run(dataset, tmp_path / "first", model_options=options, lr=1e-2, warmup_steps=0)
    bias = learned_bias(first.checkpoint)
    assert abs(bias + 10) > 1e-3
    assert json.loads((first.checkpoint / "config.json").read_text())["logit_bias"] == bias
    assert AutoModel.from_pretrained(first.checkpoint).config.logit_bias == bias
    second = run(dataset, tmp_path / "second", init=str(first.checkpoint), lr=STILL)
    assert learned_bias(second.checkpoint) == load_model(second.checkpoint).logit_bias == pytest.approx(bias, rel=1e-6)
    other = run(dataset, tmp_path / "other", model_options=options, losses={"info_nce": 1.0})
    assert load_model(other.checkpoint).logit_bias is None


def test_a_run_that_goes_on_is_the_undisturbed_one(dataset: Path, siglip: Path, tmp_path: Path) -> None:
    own = run(dataset, tmp_path / "own", lr=1e-2, warmup_steps=0).checkpoint
    for name, init in (("siglip", siglip), ("own", own)):
        config = TrainConfig(**settings(init=str(init), lr=1e-2, warmup_steps=0))
        train(str(dataset), str(tmp_path / name / "whole" / "run"), config)
        broken = tmp_path / name / "broken" / "run"
        with pytest.raises(KeyboardInterrupt):
            train(str(dataset), str(broken), config, progress=Break(48))
        train(str(dataset), str(broken), config)
        assert read_bytes(broken) == read_bytes(tmp_path / name / "whole" / "run")


@pytest.mark.parametrize("changes", [{}, {"sharding": True}], ids=["whole", "sharded"])
def test_two_processes_learn_the_bias_of_one(
    dataset: Path, siglip: Path, tmp_path: Path, changes: dict[str, bool]
) -> None:
    # Adam takes a gradient of rounding noise for a whole step; under this eps it stays noise.
    config = settings(init=str(siglip), lr=1e-2, warmup_steps=0, eps=1e-3)
    one = train(str(dataset), str(tmp_path / "one"), TrainConfig(**config))
    process = run_training(dataset, tmp_path / "two", {**config, **changes}, launcher=TORCHRUN)
    assert process.returncode == 0, process.stdout
    two = tmp_path / "two" / "checkpoints" / one.checkpoint.name
    biases = [load_file(folder / "model.safetensors")["logit_bias"] for folder in (one.checkpoint, two)]
    assert biases[1].item() == learned_bias(two)
    torch.testing.assert_close(biases[1], biases[0], rtol=0, atol=1e-3)
    assert (biases[0] - BIAS).abs().item() > 1e-2


def test_losses_that_stack_terms_take_the_scale_of_a_siglip(dataset: Path, siglip: Path, tmp_path: Path) -> None:
    losses = {"declip": {"bank_size": 16, "hidden": 16, "masked": 0.0}}
    report = run(dataset, tmp_path / "run", init=str(siglip), losses=losses, samples_seen=32)
    assert all(math.isfinite(record["loss"]) for record in read_metrics(report.run / "metrics.jsonl"))


def test_copies_in_a_batch_are_known_by_their_label(tmp_path: Path) -> None:
    rich = write_rich_scenes(tmp_path)
    curves = {}
    for same_label in ("", "match", "masked"):
        losses = {"siglip": {"label": "label", "same_label": same_label} if same_label else {}}
        columns = (str(tmp_path / COLUMNS_FILE),)
        # 24 steps; 12 labels in batches of 16.
        report = run(rich, tmp_path / f"run_{same_label}", losses=losses, columns=columns, samples_seen=16 * 24)
        curves[same_label] = [record["loss"] for record in read_metrics(report.run / "metrics.jsonl")]
        assert np.mean(curves[same_label][-3:]) < np.mean(curves[same_label][:3])
    assert curves[""][0] == pytest.approx(curves["masked"][0], rel=0.01)  # the bias makes negatives cheap at first
    assert curves["match"][0] > 1.2 * curves["masked"][0]
