import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.processes import run_processes
from train import distributed as joined_processes
from train.distributed import World, join_world, num_loaders, num_threads
from train.loss import Objective, Outputs
from train.request import Text, View

BATCH, WIDTH = 8, 6


def whole_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(BATCH, WIDTH, generator=generator), dim=1) for _ in range(2)
    )
    return images, texts, torch.tensor(12.0)


def loss_and_gradients(world: World, local_loss: bool) -> dict[str, torch.Tensor]:
    """Return the loss and its gradients as one process sees them: its rows' times the processes, since DDP averages."""
    images, texts, scale = whole_batch()
    rows = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
    leaves = [value.clone().requires_grad_() for value in (images[rows], texts[rows], scale)]
    tensors = {View().key: leaves[0], Text().key: leaves[1]}
    outputs = Outputs(tensors=tensors, logit_scale=leaves[2], world=world)
    loss, _ = Objective({"info_nce": {"weight": 1.0, "local_loss": local_loss}})(outputs)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return {
        "loss": world.mean(loss),
        "images": gradients[0] / world.size,
        "texts": gradients[1] / world.size,
        "scale": world.mean(gradients[2]),
    }


def gather_both(world: World) -> dict[str, torch.Tensor]:
    local = {f"local.{name}": value for name, value in loss_and_gradients(world, True).items()}
    return local | {f"global.{name}": value for name, value in loss_and_gradients(world, False).items()}


def weights_of(rank: int, size: int) -> np.ndarray:
    """Return what one process's loss multiplies everybody's rows by."""
    return np.random.default_rng(rank).normal(size=(3 * size, 2, 5)).astype(np.float32)


def gather_weighted(world: World) -> dict[str, torch.Tensor]:
    """Return the gradients of gathered rows, and of something added to them, in both ways of exchange."""
    found = {}
    for name, reduce in (("present", joined_processes._REDUCE_SCATTER), ("earlier", None)):
        joined_processes._REDUCE_SCATTER = reduce
        rows = torch.full((3, 2, 5), float(world.rank), requires_grad=True)
        added = torch.zeros(3 * world.size, 2, 5, requires_grad=True)
        shifts = added * 1.0  # made before, so its part of the way back comes after
        everyone = world.gather(rows) + shifts
        (everyone * torch.from_numpy(weights_of(world.rank, world.size))).sum().backward()
        assert rows.grad is not None
        assert added.grad is not None
        found |= {f"{name}.everyone": everyone.detach(), f"{name}.rows": rows.grad, f"{name}.added": added.grad}
    return found


def exchange(world: World) -> dict[str, torch.Tensor]:
    world.wait()
    with join_world() as joined:
        described = torch.tensor([joined.rank, joined.size, joined.local_size, int(joined.is_main)])
    return {
        "mean": world.mean(torch.tensor(float(world.rank))),
        "any": torch.tensor([world.any(world.rank == 1), world.any(False)]),
        "described": described,
        "still_joined": torch.tensor(torch.distributed.is_initialized()),
    }


def wait_for_the_first(world: World) -> dict[str, torch.Tensor]:
    with join_world() as joined:
        if world.is_main:
            time.sleep(6)  # at an evaluation, say
        joined.wait()
    return {}


@pytest.mark.parametrize("size", [2, 4])
def test_value_and_gradients_are_those_of_one_process(size: int, tmp_path: Path) -> None:
    expected = loss_and_gradients(World(), True)
    found = run_processes(size, tmp_path, gather_both)
    for kind in ("local", "global"):
        for name in ("loss", "scale"):
            for one in found:
                torch.testing.assert_close(one[f"{kind}.{name}"], expected[name], rtol=1e-5, atol=1e-6)
        for name in ("images", "texts"):
            rows = torch.cat([one[f"{kind}.{name}"] for one in found])
            torch.testing.assert_close(rows, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_gathered_rows_get_what_all_losses_send_them(size: int, tmp_path: Path) -> None:
    weights = [weights_of(rank, size) for rank in range(size)]
    for rank, one in enumerate(run_processes(size, tmp_path, gather_weighted)):
        own = slice(3 * rank, 3 * rank + 3)
        for name in ("present", "earlier"):
            assert one[f"{name}.everyone"][:, 0, 0].tolist() == np.repeat(np.arange(float(size)), 3).tolist()
            np.testing.assert_allclose(one[f"{name}.rows"].numpy(), np.sum(weights, axis=0)[own], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(one[f"{name}.added"].numpy(), weights[rank])


def test_processes_agree(tmp_path: Path) -> None:
    found = run_processes(2, tmp_path, exchange)
    for rank, one in enumerate(found):
        assert one["mean"].item() == 0.5
        assert one["any"].tolist() == [True, False]
        assert one["described"].tolist() == [rank, 2, 2, rank == 0]
        assert one["still_joined"]  # whoever joined leaves, not the trainer


def test_a_slow_process_is_waited_for_longer_than_in_a_step(tmp_path: Path) -> None:
    assert run_processes(2, tmp_path, wait_for_the_first, timeout=timedelta(seconds=2)) == [{}, {}]


def test_one_process_needs_no_group() -> None:
    with join_world() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        world.wait()
        assert world.any(True)
        assert world.mean(torch.tensor(2.0)).item() == 2.0
    assert not torch.distributed.is_initialized()


def test_processes_of_a_host_share_its_cpus() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert num_threads(World(), 0) == cpus
    assert num_threads(World(size=64, local_size=64), 0) == max(1, cpus // 64)
    assert num_threads(World(), 3) == 3


def test_loaders_take_what_training_leaves() -> None:
    cpus = len(os.sched_getaffinity(0))
    gpu = torch.device("cuda", 0)
    assert num_loaders(World(), None) == 2
    assert num_loaders(World(device=gpu), None) == max(2, cpus - 2)
    assert num_loaders(World(device=gpu, size=cpus, local_size=cpus), None) == 2
    assert num_loaders(World(device=gpu), 0) == 0
    assert num_loaders(World(), 7) == 7
