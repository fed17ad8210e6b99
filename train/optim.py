"""AdamW over two groups of parameters, and the learning rate as a pure function of the step."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from train.config import TrainConfig
from train.sharding import cut_like, whole_tensor

_WEIGHT = "weight"


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only: not on biases, norms, class tokens and the logit scale (ndim <= 1)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=parameters[0].is_cuda,
    )


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Return the rate of the update number `step` (from 0): linear up to `lr` over the warm-up, then half a cosine down to 0."""
    warmup = config.num_warmup_steps(num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(model: nn.Module, grad_clip: float) -> torch.Tensor:
    """Scale the gradients down to a total norm of at most `grad_clip` (0: leave them) and return the norm before that."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    # Those that are cut over processes and those that are not are not stacked with each other.
    kinds = [[value for value in gradients if isinstance(value, DTensor) is is_cut] for is_cut in (True, False)]
    norms = [whole_tensor(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    if grad_clip:
        for is_cut in (True, False):
            own = [value for value in model.parameters() if isinstance(value, DTensor) is is_cut]
            torch.nn.utils.clip_grads_with_norm_(own, grad_clip, norm)
    return norm


def training_tensors(optimizer: torch.optim.AdamW, trained: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """Return what training needs besides the model's weights, as a safetensors file holds it.

    `exp_avg.<parameter>` and the like are the optimizer's state, `weight.objective.<name>` the losses' own parameters and buffers.
    """
    state = {
        f"{kind}.{name}": value
        for name, parameter in trained.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    weights = {f"{_WEIGHT}.objective.{name}": value for name, value in trained["objective"].state_dict().items()}
    return state | weights


def load_training_tensors(
    optimizer: torch.optim.AdamW, trained: nn.ModuleDict, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `training_tensors` returned, on the devices of the parameters."""
    trained["objective"].load_state_dict({
        name: tensors[f"{_WEIGHT}.objective.{name}"] for name in trained["objective"].state_dict()
    })
    # In one order on all processes, for each takes its part of a tensor from the first.
    kinds = sorted({name.split(".", 1)[0] for name in tensors} - {_WEIGHT})
    for name, parameter in trained.named_parameters():
        found = {kind: tensors[f"{kind}.{name}"] for kind in kinds if f"{kind}.{name}" in tensors}
        optimizer.state[parameter] = {kind: _place(kind, value, parameter, optimizer) for kind, value in found.items()}


def _place(kind: str, value: torch.Tensor, parameter: torch.Tensor, optimizer: torch.optim.AdamW) -> torch.Tensor:
    # Only fused AdamW counts its steps on the device. Cloned, because a view into the file has another alignment, and results on a
    # CPU then other last bits.
    on_device = kind != "step" or optimizer.defaults["fused"]
    return cut_like(value.clone().to(parameter.device if on_device else "cpu"), parameter)
