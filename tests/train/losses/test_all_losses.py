"""What every loss in `train/losses/` promises: it is the same however many processes share the batch, and one of no weight changes nothing."""

import math

import pytest
import torch

from tests.train.losses.outputs import make_objective, make_outputs
from tests.train.processes import run_processes
from train.distributed import World
from train.loss import Objective, discover_losses
from train.request import Patches, Pooled, Text, Tokens, View

COUNT = 8
# Small enough for random numbers of eight samples, with every term; what differs from the defaults is widths and weights.
OPTIONS = {
    "coca": {"num_queries": 3, "layers": 1},
    "declip": {"bank_size": 12, "hidden": 16},
    "filip": {"width": 8, "num_tokens": 3},
    "matryoshka": {"widths": (2, 3, 8), "weights": (1.0, 0.5, 2.0)},
    "longclip": {"components": 3},
    "mlcd": {"share": 0.75, "num_labels": 2},
    "momentum": {"queue_size": 12, "hardest": 6, "cap": 0.5},
    "prototypes": {"num_prototypes": 5, "num_local": 2, "hidden": 16, "width": 6, "frozen_steps": 0},
    "siglip": {"chunk": 3},
    "silc": {"num_local": 3, "hidden": 16, "bottleneck": 6, "num_outputs": 9},
    "simclr": {"hidden": 16, "width": 8},
    "uniformity": {"cross": 0.5, "power": 3.0},
}


def measure(name: str, world: World) -> dict[str, torch.Tensor]:
    """Return what two steps on one batch give: values, gradients as the trainer averages them, and the state left behind."""
    objective = make_objective({name: OPTIONS.get(name, {})})
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        objective.zero_grad()
        outputs = make_outputs(objective.needs, COUNT, world)
        total, terms = objective(outputs)
        total.backward()
        found |= {f"{name}.{step}.{term}": world.mean(value) for term, value in {"total": total, **terms}.items()}
    for request in objective.needs:
        if isinstance(request, View | Text | Pooled | Patches | Tokens):
            gradient = outputs[request].grad
            assert gradient is not None, f"{request} is asked for in vain"
            # The towers' gradients are averaged over the processes; this process's rows of the whole batch's gradient.
            found[f"{name}.{request.key}"] = world.gather(gradient / world.size)
    # The factor on cosines is a parameter of the towers: its gradient is averaged too.
    scale = outputs.logit_scale.grad
    found[f"{name}.logit_scale"] = world.mean(torch.zeros(()) if scale is None else scale)
    for key, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{key} is not trained"
            found[f"{name}.{key}"] = world.mean(parameter.grad)
    return found | {f"{name}.{key}": value.float() for key, value in objective.named_buffers()}


def measure_all(world: World) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in discover_losses():
        found |= measure(name, world)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    return measure_all(World())


@pytest.fixture(scope="module", params=[2, 4])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    return run_processes(request.param, tmp_path_factory.mktemp("ranks"), measure_all)


@pytest.mark.parametrize("name", discover_losses())
def test_gathered_equals_one_process(name: str, alone, shared) -> None:
    expected = {key: value for key, value in alone.items() if key.startswith(f"{name}.")}
    assert len(expected) > 3
    for rank, found in enumerate(shared):
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key],
                value,
                rtol=1e-4,
                atol=1e-6,
                msg=lambda text, key=key, rank=rank: f"{key} on rank {rank}: {text}",
            )


@pytest.mark.parametrize("name", discover_losses())
def test_gradients_are_worth_comparing(name: str, alone) -> None:
    values = {key: value for key, value in alone.items() if key.startswith(f"{name}.")}
    assert all(torch.isfinite(value).all() for value in values.values())
    assert any(value.abs().max() > 1e-4 for key, value in values.items() if "view" in key or "text" in key)


@pytest.mark.parametrize("name", [name for name in discover_losses() if name != "info_nce"])
def test_weight_zero_equals_clip(name: str) -> None:
    both = make_objective({"info_nce": 1.0, name: {**OPTIONS.get(name, {}), "weight": 0.0}})
    clip = Objective({"info_nce": 1.0})
    assert both.needs == clip.needs
    assert list(both.parameters()) == []
    assert (both.locks_images, both.initial_logit_scale, both.teacher) == (False, 0.0, None)
    results = []
    for objective in (both, clip):
        outputs = make_outputs(both.needs, COUNT)
        total, _ = objective(outputs)
        total.backward()
        results.append((total, outputs))
    (found, found_outputs), (expected, expected_outputs) = results
    assert torch.equal(found, expected)
    for request in (View(), Text()):
        assert torch.equal(found_outputs[request].grad, expected_outputs[request].grad)


@pytest.mark.parametrize("name", discover_losses())
def test_state_comes_back(name: str) -> None:
    one, other = (make_objective({name: OPTIONS.get(name, {})}) for _ in range(2))
    one(make_outputs(one.needs, COUNT))
    other.load_state_dict(one.state_dict())
    found, expected = (objective(make_outputs(one.needs, COUNT))[0] for objective in (other, one))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", discover_losses())
def test_every_loss_says_what_it_is(name: str) -> None:
    objective = make_objective({name: OPTIONS.get(name, {})})
    total, _ = objective(make_outputs(objective.needs, COUNT))
    assert math.isfinite(total.item())
    assert (type(objective.losses[name]).__doc__ or "").strip()
