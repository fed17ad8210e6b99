"""Weights, gradients and moments cut over the processes, for models that do not fit one device (FSDP2).

The logarithm of the temperature is one number and stays whole on every process. Checkpoints hold whole tensors, so that a run goes on under any
number of processes, sharded or not.
"""

from collections.abc import Mapping

import torch
from torch import nn

from schemas.errors import InputError
from train.config import TrainConfig
from train.distributed import World
from train.loss import Objective
from train.model import ImageTextModel


def shard_model(model: ImageTextModel, world: World) -> None:
    """Cut the model in place: every layer of the towers by itself, and the rest together; before an optimizer sees its parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for tower in (model.network.vision_model, model.network.text_model):
        for module in tower.modules():
            if isinstance(module, nn.ModuleList):
                for layer in module:
                    fully_shard(layer, mesh=mesh)
    scale = model.logit_scale
    # The bias of a SigLIP is one number too, set from the loss that learns it.
    numbers = {value for name, value in model.network.named_parameters() if name in {"logit_scale", "logit_bias"}}
    fully_shard(model, mesh=mesh, ignored_params=numbers)

    def average(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad = world.mean(parameter.grad)

    # What is not cut is not exchanged either.
    scale.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model has been cut."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with those that are cut put together; every process must ask."""
    return {name: whole_tensor(value) for name, value in tensors.items()}


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor, put together where it is cut; every process must ask."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def cut_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor, cut as `parameter` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and value.ndim:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def check_sharding(config: TrainConfig, objective: Objective) -> None:
    """Raise `InputError` for settings that need whole weights in the middle of a run."""
    sampling, towers = config.sampling, config.towers
    problems = {
        "eval_every": bool(config.eval_every),
        "compile": config.compile,
        "sampling.curation": sampling is not None and sampling.curation is not None,
        "towers.image_locked_steps above 0": towers is not None and towers.image_locked_steps > 0,
        "towers.text_locked_steps above 0": towers is not None and towers.text_locked_steps > 0,
        "a loss with a teacher that follows the model": objective.teacher is not None,
    }
    found = [name for name, is_set in problems.items() if is_set]
    if found:
        raise InputError(f"sharding does not go with {', '.join(found)}; leave one of them out")
