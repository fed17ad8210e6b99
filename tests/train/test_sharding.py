"""Two processes that share the weights learn what one process learns, and leave a checkpoint that anybody can go on from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.processes import run_processes
from tests.train.test_curation import tiny_model
from tests.train.training import TINY, run_training, write_scenes
from train.checkpoint import find_checkpoint, load_optimizer_state
from train.config import TrainConfig
from train.distributed import World
from train.loss import Objective
from train.metrics import read_metrics
from train.model import load_model
from train.optim import clip_gradients, load_training_tensors, make_optimizer, training_tensors
from train.sampling import Curation, SamplingConfig
from train.sharding import check_sharding, cut_like, is_sharded, shard_model, whole_tensor, whole_tensors
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def step_sharded(world: World, *, is_cut: bool | None = None) -> dict[str, torch.Tensor]:
    """Make two updates of a cut model, the second after its moments went through a checkpoint, and return everything whole."""
    model = tiny_model().to(world.device).train()
    is_cut = world.size > 1 if is_cut is None else is_cut
    if is_cut:
        shard_model(model, world)
    assert is_sharded(model) is is_cut
    trained = torch.nn.ModuleDict({"model": model, "objective": Objective({"info_nce": 1.0})})
    # Adam takes a gradient of rounding noise for a whole step; under this eps it stays noise.
    config = TrainConfig(lr=1e-2, eps=1e-3)
    found: dict[str, torch.Tensor] = {}
    optimizer = make_optimizer(trained, config)
    for step in range(2):
        if step:
            saved = whole_tensors(training_tensors(optimizer, trained))
            optimizer = make_optimizer(trained, config)
            load_training_tensors(optimizer, trained, saved)
        found[f"norm.{step}"] = _update(model, trained, optimizer, world)
    found |= whole_tensors(model.network.state_dict())
    return found


def _update(
    model: torch.nn.Module, trained: torch.nn.ModuleDict, optimizer: torch.optim.AdamW, world: World
) -> torch.Tensor:
    from train.request import Text, View

    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(8, 3, 16, 16, generator=generator).chunk(world.size)[world.rank]
    ids, mask = (value.chunk(world.size)[world.rank] for value in model.tokenize([f"a cat {n}" for n in range(8)]))  # type: ignore[operator]
    inputs = {View().key: pictures, f"{Text().key}.ids": ids, f"{Text().key}.mask": mask}
    answer = model(inputs, (View(), Text()))
    loss = (answer["logit_scale"] * (answer[View().key] * answer[Text().key]).sum(dim=1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    norm = clip_gradients(trained, 0.5)
    optimizer.step()
    return norm


@pytest.mark.gpu
def test_updates_on_a_gpu_are_those_on_a_cpu() -> None:
    alone = step_sharded(World())
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        found = step_sharded(World(device=torch.device("cuda", 0)), is_cut=True)
    finally:
        torch.distributed.destroy_process_group()
    for name, value in alone.items():
        torch.testing.assert_close(
            found[name].cpu(), value, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_updates_are_those_of_one_process(tmp_path: Path) -> None:
    alone = step_sharded(World())
    for found in run_processes(2, tmp_path, step_sharded):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(
                found[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.slow
def test_a_sharded_run_has_the_loss_curve_of_one_process(tmp_path: Path) -> None:
    dataset = write_scenes(tmp_path / "dataset")
    settings = {**TINY, "samples_seen": 16 * 6, "save_every": 3, "grad_clip": 1.0}
    (tmp_path / "two").mkdir()
    result = run_training(dataset, tmp_path / "two" / "run", {**settings, "sharding": True}, launcher=TORCHRUN)
    assert result.returncode == 0, result.stdout
    train(str(dataset), str(tmp_path / "one"), TrainConfig(**settings))
    one, two = (
        {key: [record[key] for record in read_metrics(run / "metrics.jsonl")] for key in ("loss", "grad_norm")}
        for run in (tmp_path / "one", tmp_path / "two" / "run")
    )
    np.testing.assert_allclose(one["loss"], two["loss"], atol=1e-4)
    np.testing.assert_allclose(one["grad_norm"], two["grad_norm"], rtol=1e-3)
    checkpoint = find_checkpoint(tmp_path / "two" / "run")
    shapes = {
        name: value.shape for name, value in load_model(find_checkpoint(tmp_path / "one")).network.state_dict().items()
    }
    assert {name: value.shape for name, value in load_model(checkpoint).network.state_dict().items()} == shapes
    theirs = load_optimizer_state(find_checkpoint(tmp_path / "one"))
    assert load_optimizer_state(checkpoint).keys() == theirs.keys()
    # One process, which does not shard, takes the run over.
    assert train(str(dataset), str(tmp_path / "two" / "run"), TrainConfig(**settings)).was_finished


def test_whole_tensors_stay_as_they_are() -> None:
    value = torch.ones(3)
    assert whole_tensor(value) is value
    assert cut_like(value, torch.zeros(3)) is value


def test_what_needs_whole_weights_is_refused() -> None:
    config = TrainConfig(sharding=True, sampling=SamplingConfig(curation=Curation(names="x")), compile=True)
    with pytest.raises(InputError, match=r"sharding does not go with compile, sampling.curation; leave one"):
        check_sharding(config, Objective({"info_nce": 1.0}))
    check_sharding(TrainConfig(sharding=True), Objective({"info_nce": 1.0}))
