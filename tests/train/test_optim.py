import math

import pytest
import torch
from torch import nn

from train.config import TrainConfig
from train.optim import (
    clip_gradients,
    learning_rate,
    load_training_tensors,
    make_optimizer,
    set_learning_rate,
    training_tensors,
)

CONFIG = TrainConfig(lr=1e-2, warmup_steps=10, weight_decay=0.3)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


def trained(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    return nn.ModuleDict({"model": layers, "objective": Scaled()})


def update(modules: nn.ModuleDict, optimizer: torch.optim.AdamW, step: int) -> None:
    optimizer.zero_grad()
    features = modules["model"](torch.tensor([step % 5, 1]))
    (features.square().sum() * modules["objective"].scale + features[0, 0]).backward()
    optimizer.step()


def test_only_matrices_decay() -> None:
    modules = trained()
    decayed, free = make_optimizer(modules, CONFIG).param_groups
    names = {parameter: name for name, parameter in modules.named_parameters()}
    assert sorted(names[p] for p in decayed["params"]) == ["model.0.weight", "model.1.weight"]
    assert sorted(names[p] for p in free["params"]) == [
        "model.1.bias",
        "model.2.bias",
        "model.2.weight",
        "objective.scale",
    ]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.98), 1e-6)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-3),  # the first update already moves
        (9, 1e-2),
        (10, 1e-2),
        (55, 1e-2 * 0.5),  # half of the way down
        (99, 1e-2 * 0.5 * (1 + math.cos(math.pi * 89 / 90))),
    ],
)
def test_learning_rate(step: int, expected: float) -> None:
    assert learning_rate(step, 100, CONFIG) == pytest.approx(expected)


def test_learning_rate_without_warmup_and_in_one_step() -> None:
    assert learning_rate(0, 1, TrainConfig(warmup_steps=0, lr=0.5)) == 0.5
    assert learning_rate(0, 3, CONFIG) == pytest.approx(1e-2)


def test_every_group_takes_the_rate() -> None:
    optimizer = make_optimizer(trained(), CONFIG)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_clipping_scales_down_and_returns_the_norm_before() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(layer, 0.0).item() == pytest.approx(5.0)
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]
    assert clip_gradients(layer, 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]), rtol=1e-4, atol=0)


def test_state_goes_on_exactly_where_it_was_saved() -> None:
    straight = trained()
    optimizer = make_optimizer(straight, CONFIG)
    for step in range(3):
        update(straight, optimizer, step)
    saved = {name: value.clone() for name, value in training_tensors(optimizer, straight).items()}
    weights = {name: value.clone() for name, value in straight["model"].state_dict().items()}
    assert "exp_avg_sq.model.1.weight" in saved

    resumed = trained(seed=1)
    resumed["model"].load_state_dict(weights)
    other = make_optimizer(resumed, CONFIG)
    load_training_tensors(other, resumed, saved)
    for step in range(3, 6):
        update(straight, optimizer, step)
        update(resumed, other, step)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
