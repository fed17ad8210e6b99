import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, log_softmax, make_objective, make_outputs
from tests.train.test_gradients import TEXTS, make_model
from tests.train.training import TINY, write_scenes
from train.checkpoint import find_checkpoint, load_optimizer_state
from train.columns import SampleColumns
from train.config import TrainConfig
from train.distributed import World
from train.gradients import compute_gradients
from train.index import Dataset
from train.inputs import InputMaker, Inputs
from train.loader import Loader, LoaderConfig
from train.loss import Objective
from train.losses import silc
from train.metrics import read_metrics
from train.model import load_model
from train.request import Pooled, Teacher, Text, View, wanted_views
from train.tower_config import TowerConfig
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")
SMALL = {"num_local": 3, "hidden": 16, "bottleneck": 6, "num_outputs": 9}


def run_head(head: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
    """Return the outputs of a head in plain numpy: three layers, unit vectors, cosines."""
    erf = np.vectorize(math.erf)
    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for number, layer in enumerate(linear):
        rows = rows @ layer.weight.detach().numpy().T.astype(np.float64) + layer.bias.detach().numpy()
        if number < len(linear) - 1:
            rows = rows * (1 + erf(rows / np.sqrt(2))) / 2
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    directions = head.outputs.detach().numpy().astype(np.float64)
    return rows @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T


def reference(loss: silc.SILC, outputs, centre: np.ndarray) -> tuple[float, np.ndarray]:
    """Return DINO's loss of every crop with the teacher's view, picture by picture, and the next centre."""
    scores = run_head(loss.teacher_head, array(outputs, loss.whole))
    losses = []
    for view in loss.local:
        for target, output in zip(scores, run_head(loss.head, array(outputs, view)), strict=True):
            wanted = np.exp(log_softmax((target - centre) / loss.teacher_temperature))
            losses.append(-(wanted * log_softmax(output / loss.student_temperature)).sum())
    return float(np.mean(losses)), loss.centre_momentum * centre + (1 - loss.centre_momentum) * scores.mean(axis=0)


def test_reference() -> None:
    loss = make_objective({"silc": SMALL}).losses["silc"]
    with torch.no_grad():
        for value in loss.head.parameters():
            value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    outputs = make_outputs(loss.needs, 6)
    centre = np.zeros(9)
    for _ in range(3):
        expected, centre = reference(loss, outputs, centre)
        assert loss(outputs)["silc"].item() == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(loss.centre.numpy(), centre, rtol=1e-4, atol=1e-6)
    assert np.abs(centre).max() > 0.01


def test_many_pictures_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (2048, 6):
        monkeypatch.setattr(silc, "_CHUNK", chunk)
        loss = make_objective({"silc": SMALL}).losses["silc"]
        for _ in range(2):  # the second has a centre that moves before the way back
            loss.zero_grad()
            outputs = make_outputs(loss.needs, 7)
            total = loss(outputs)["silc"]
            total.backward()
        gradients = [outputs[view].grad for view in loss.local] + [value.grad for value in loss.head.parameters()]
        results.append((total.detach(), loss.centre.clone(), *gradients))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


def test_crops_that_are_asked_for() -> None:
    loss = silc.SILC()
    views = wanted_views(loss.needs)
    small = [view for view in views if view.size]
    assert len(small) == len({view.number for view in small}) == 8
    assert {(view.scale, view.size) for view in small} == {((0.05, 0.4), 96)}
    assert [view for view in views if not view.size] == [View()]  # the teacher's, which the text is compared with
    own = silc.SILC(num_local=2, local_scale=(0.1, 0.2), local_size=0, global_scale=(0.4, 1.0))
    assert wanted_views(own.needs) == (
        View(number=1, scale=(0.1, 0.2)),
        View(number=2, scale=(0.1, 0.2)),
        View(number=3, scale=(0.4, 1.0)),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_local": 0}, "num_local is 1 or more"),
        ({"local_scale": (0.1,)}, "local_scale two shares"),
        ({"global_scale": (0.1,)}, "global_scale two or none"),
        ({"momentum": 1.5}, "momentum and centre_momentum are from 0 to 1"),
        ({"teacher_temperature": 0.0}, "temperatures are above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        silc.SILC(**options)


def test_the_teacher_learns_nothing_and_follows() -> None:
    """Towers and head alike: no gradient in a step of real towers, and after it the mean that the momentum says."""
    torch.set_num_threads(1)
    model = make_model()
    objective = Objective({"info_nce": 1.0, "silc": {**SMALL, "local_size": 8, "momentum": 0.75}})
    objective.build(model.shape, model.copy)
    loss = objective.losses["silc"]
    generator = torch.Generator().manual_seed(1)
    towers = {
        view.key: torch.randint(
            0, 256, (8, 3, view.size or 16, view.size or 16), dtype=torch.uint8, generator=generator
        )
        for view in wanted_views(objective.needs)
    }
    ids, mask = model.tokenize(TEXTS)
    inputs = Inputs(
        towers={**towers, f"{Text().key}.ids": ids, f"{Text().key}.mask": mask}, fields={}, indices=np.arange(8)
    )
    result = compute_gradients(model, objective, inputs, world=World(), autocast=nullcontext)
    assert not result.outputs[Teacher(Pooled(View()))].requires_grad
    taught = [*objective.teacher.parameters(), *loss.teacher_head.parameters()]
    assert all(value.grad is None and not value.requires_grad for value in taught)
    assert all(value.grad is not None for value in loss.head.parameters())
    # The smaller crops pass the tower too, with their positions interpolated.
    assert model.network.vision_model.embeddings.position_embedding.weight.grad.abs().max() > 0

    before = [value.clone() for value in taught]
    learned = [*model.parameters(), *loss.head.parameters()]
    with torch.no_grad():
        for value in learned:
            value += 0.1
    objective.follow(model)
    for slow, start, fast in zip(taught, before, learned, strict=True):
        torch.testing.assert_close(slow, 0.75 * start + 0.25 * fast)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


def test_a_short_run_falls_and_the_teacher_does_not_collapse(dataset: Path, tmp_path: Path) -> None:
    """Its choices are sure of single pictures and differ between pictures: neither is the same for all nor even over all outputs."""
    options = {"num_local": 2, "local_size": 16, "hidden": 128, "num_outputs": 64, "momentum": 0.98}
    losses = {"info_nce": 1.0, "silc": options}
    settings = {**TINY, "losses": losses, "samples_seen": 16 * 150, "save_every": 1000, "crop_scale": (0.4, 1.0)}
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings))
    terms = [record["silc"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    # It rises while the centre, which begins at 0, finds its place.
    assert np.mean(terms[-10:]) < np.mean(terms[:10]) - 0.4
    assert np.mean(terms[-10:]) < np.mean(terms[20:30]) - 0.6

    checkpoint = find_checkpoint(tmp_path / "run")
    model = load_model(checkpoint)
    objective = Objective(losses)
    objective.build(model.shape, model.copy)
    state = load_optimizer_state(checkpoint)
    objective.load_state_dict({name: state[f"weight.objective.{name}"] for name in objective.state_dict()})
    loss = objective.losses["silc"]
    views = wanted_views(objective.needs)
    opened = Dataset.open(str(dataset))
    config = LoaderConfig(batch_size=opened.num_samples, image_size=32, num_workers=0, views=views)
    with Loader(opened, config) as loader:
        batch = next(loader.batches())
    inputs = InputMaker(model, objective.needs, SampleColumns(), torch.device("cpu")).make(batch)
    with torch.no_grad():
        pooled = objective.teacher(inputs.towers, (Pooled(View()),))[Pooled(View()).key]
        scores = loss.teacher_head(pooled) @ loss.teacher_head.directions.T
        choices = ((scores - loss.centre) / loss.teacher_temperature).softmax(1).double().numpy()

    def entropy(shares: np.ndarray) -> np.ndarray:
        return -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=-1)

    single, together = entropy(choices).mean(), entropy(choices.mean(axis=0))
    assert together > 0.4 * np.log(64)
    assert single < 0.75 * np.log(64)
    assert together - single > 0.5  # nats that a choice tells about its picture


@pytest.mark.parametrize(
    ("shape", "further"),
    [
        ({"image_tower": "convnext", "image_depths": (1, 1), "image_widths": (8, 16), "patch_size": 4}, {}),
        ({"image_tower": "resnet", "image_depths": (1, 1), "image_widths": (8, 16)}, {}),
        ({}, {"towers": TowerConfig(patch_share=0.5)}),  # of the whole pictures, smaller ones are seen whole
        ({}, {"gradient_checkpointing": True, "grad_accumulation": 2}),
    ],
)
def test_other_towers_take_small_crops(
    shape: dict[str, object], further: dict[str, object], dataset: Path, tmp_path: Path
) -> None:
    losses = {"info_nce": 1.0, "silc": {**SMALL, "local_size": 16}}
    options = {**TINY["model_options"], **shape}
    settings = {**TINY, "model_options": options, "losses": losses, "samples_seen": 32, **further}
    report = train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings))
    assert [np.isfinite(record["silc"]) for record in read_metrics(report.run / "metrics.jsonl")] == [True, True]


def test_pictures_of_any_aspect_have_no_crops(dataset: Path, tmp_path: Path) -> None:
    options = {**TINY["model_options"], "image_tower": "navit"}
    settings = {**TINY, "model_options": options, "losses": {"info_nce": 1.0, "silc": {**SMALL, "local_size": 16}}}
    with pytest.raises(InputError, match="navit has no augmented views"):
        train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings, samples_seen=32))
    whole = {**TINY, "losses": {"info_nce": 1.0, "silc": SMALL}, "samples_seen": 32}
    with pytest.raises(InputError, match="a loss asks for views of 96 pixels, and the model's pictures have 32"):
        train(str(dataset), str(tmp_path / "whole"), TrainConfig(**whole))
