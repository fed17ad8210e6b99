from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn

from tests.train.processes import run_processes
from tests.train.test_loss import TwoTerms
from train.config import ModelConfig
from train.distributed import World, wrap_towers
from train.gradients import _average, _seed_dropout, compute_gradients
from train.inputs import Inputs
from train.loss import Objective, Outputs
from train.model import ImageTextModel, build_model
from train.request import Text, View
from train.tokenizer import train_tokenizer

SHAPE = ModelConfig(
    image_size=16, patch_size=8, image_width=16, image_layers=1, image_heads=1, text_width=16, text_layers=1,
    text_heads=1, context_length=8, embed_dim=8,
)  # fmt: skip
TEXTS = ["a red dog", "two cats", "the mat", "red", "a blue cat on", "dog", "cat mat", "two two two"]


def make_model(dropout: float = 0.0) -> ImageTextModel:
    model = build_model(SHAPE, train_tokenizer(TEXTS, 520, 8), seed=0).train()
    for tower in (model.network.text_model, model.network.vision_model):
        for layer in tower.encoder.layers:
            layer.self_attn.dropout = dropout
    return model


def batch(model: ImageTextModel, rows: slice = slice(None)) -> Inputs:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ids, mask = model.tokenize(TEXTS)
    towers = {View().key: images, f"{Text().key}.ids": ids, f"{Text().key}.mask": mask}
    towers = {key: value[rows] for key, value in towers.items()}
    return Inputs(towers=towers, fields={}, indices=np.arange(8)[rows])


def gradients(
    world: World, num_parts: int, *, dropout: float = 0.0, with_parameters: bool = False
) -> dict[str, torch.Tensor]:
    """Return loss, terms and every gradient for this process's rows of a fixed batch of 8."""
    torch.set_num_threads(1)
    model = make_model(dropout)
    objective = Objective({"info_nce": 1.0})
    if with_parameters:
        objective.losses["two"] = TwoTerms()
        objective.weights["two"] = 0.5
    rows = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    inputs = batch(model, rows)
    towers = wrap_towers(model, world)
    for _ in range(2):  # the second time shows that nothing is left over
        model.zero_grad()
        objective.zero_grad()
        result = compute_gradients(
            towers, objective, inputs, world=world, autocast=nullcontext, num_parts=num_parts, seed=(0, 3)
        )
    modules = nn.ModuleDict({"model": model, "objective": objective})
    found = {name: parameter.grad for name, parameter in modules.named_parameters() if parameter.grad is not None}
    assert len(found) == len(list(modules.parameters()))
    return {"loss": result.loss, **result.terms, **found}


def in_one(world: World) -> dict[str, torch.Tensor]:
    return gradients(world, 1, with_parameters=True)


def in_parts(world: World) -> dict[str, torch.Tensor]:
    return gradients(world, 2, with_parameters=True)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_parts_give_the_gradient_of_the_whole_batch(num_parts: int) -> None:
    assert_close(gradients(World(), num_parts, with_parameters=True), gradients(World(), 1, with_parameters=True))


def test_gradients_are_worth_comparing() -> None:
    # Micro-batches with their own negatives only, the usual accumulation, are far away.
    whole = gradients(World(), 1)
    assert all(value.abs().max() > 1e-5 for name, value in whole.items() if "k_proj.bias" not in name)


def test_both_passes_draw_the_same_dropout() -> None:
    found = gradients(World(), 2, dropout=0.5)
    # The same parts with one graph over both, which needs no second pass.
    model = make_model(0.5)
    features = []
    for number, part in enumerate(batch(model).split(2)):
        _seed_dropout((0, 3), number)
        features.append(model(part, (View(), Text())))
    tensors = {request.key: torch.cat([part[request.key] for part in features]) for request in (View(), Text())}
    outputs = Outputs(tensors=tensors, logit_scale=model.logit_scale.exp())
    loss, _ = Objective({"info_nce": 1.0})(outputs)
    loss.backward()
    expected = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(found, {"loss": loss.detach(), **expected})
    assert not torch.equal(found["loss"], gradients(World(), 2)["loss"])


@pytest.mark.parametrize("function", [in_one, in_parts])
def test_two_processes_give_the_gradient_of_one(function, tmp_path: Path) -> None:
    expected = gradients(World(), 1, with_parameters=True)
    for found in run_processes(2, tmp_path, function):
        assert_close(found, expected)


def average(world: World) -> dict[str, torch.Tensor]:
    """Return averaged gradients of several shapes, and how many exchanges they took."""
    torch.set_num_threads(1)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((), (3, 2), (4,), (0,), (2, 1, 2))]
    for number, parameter in enumerate(parameters):
        if number != 2:
            values = torch.arange(float(parameter.numel())) + 100 * number
            parameter.grad = ((world.rank + 1) ** 2 * values).reshape(parameter.shape)
    num_calls, exchange = 0, distributed.all_reduce

    def count(tensor: torch.Tensor) -> None:
        nonlocal num_calls
        num_calls += 1
        exchange(tensor)

    distributed.all_reduce = count
    _average(parameters, world)
    assert parameters[2].grad is None
    found = {str(number): parameter.grad for number, parameter in enumerate(parameters) if number != 2}
    return {**found, "num_calls": torch.tensor(num_calls)}


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_losses_are_averaged_in_one_exchange(size: int, tmp_path: Path) -> None:
    factor = np.mean([(rank + 1) ** 2 for rank in range(size)])
    for found in run_processes(size, tmp_path, average):
        assert found.pop("num_calls").item() == 1
        for number, shape in ((0, ()), (1, (3, 2)), (3, (0,)), (4, (2, 1, 2))):
            expected = factor * (np.arange(float(np.prod(shape))) + 100 * number).reshape(shape)
            np.testing.assert_allclose(found[str(number)].numpy(), expected, rtol=1e-6)
