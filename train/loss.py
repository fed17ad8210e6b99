"""What a loss receives and returns, how it is found, and how several are added up.

A new loss is one file in `train/losses/`: a class derived from `Loss`, found by the name of its file, its options the keyword arguments
of its constructor. A recipe names it with its weight, or with its weight and options:

    losses: {info_nce: 1.0}
    losses: {info_nce: {weight: 1.0, local_loss: false}}
"""

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from schemas.errors import InputError
from train import losses as losses_package
from train.config import LossSetting
from train.distributed import World


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the towers made of this process's share of the batch; row i of the images belongs to row i of the texts."""

    image_features: torch.Tensor  # (n, d), unit length, float32
    text_features: torch.Tensor  # (n, d), unit length, float32
    logit_scale: torch.Tensor  # the factor itself, not its logarithm
    world: World = field(default_factory=World)

    @cached_property
    def all_image_features(self) -> torch.Tensor:
        """Every process's images (N, d) in batch order, with gradients; exchanged once however many losses ask."""
        return self.world.gather(self.image_features)

    @cached_property
    def all_text_features(self) -> torch.Tensor:
        """Every process's texts (N, d) in batch order, with gradients."""
        return self.world.gather(self.text_features)

    @property
    def first_row(self) -> int:
        """Where this process's rows begin in the whole batch."""
        return self.world.rank * len(self.image_features)


class Loss(nn.Module, ABC):
    """A loss over one batch; it may hold parameters, which are trained with the model's.

    Gradients are averaged over the processes, so the mean over the ranks of what is returned must be the loss of the whole batch.
    """

    @abstractmethod
    def forward(self, outputs: Outputs) -> Mapping[str, torch.Tensor]:
        """Return named scalar terms; their sum is the loss, each is logged under its name."""


class Objective(nn.Module):
    """The weighted sum of the losses a configuration names."""

    def __init__(self, settings: Mapping[str, LossSetting]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.losses = nn.ModuleDict()
        for name, setting in settings.items():
            options = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
            self.weights[name] = float(options.pop("weight", 1.0))
            self.losses[name] = make_loss(name, options)

    def forward(self, outputs: Outputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the total, and each term before its weight (empty where there is only one term, which is then the total)."""
        terms: dict[str, torch.Tensor] = {}
        total = outputs.logit_scale.new_zeros(())
        for name, loss in self.losses.items():
            parts = loss(outputs)
            terms.update(parts)
            total = total + self.weights[name] * torch.stack(list(parts.values())).sum()
        return total, terms if len(terms) > 1 else {}


def discover_losses() -> list[str]:
    """Return the names of the losses there are: the files of `train/losses/`."""
    return sorted(module.name for module in pkgutil.iter_modules(losses_package.__path__))


def make_loss(name: str, options: Mapping[str, float | bool]) -> Loss:
    """Build the loss of the file `train/losses/<name>.py` with its options."""
    if name not in discover_losses():
        raise InputError(f"unknown loss {name!r}; there are: {', '.join(discover_losses())}")
    module = importlib.import_module(f"{losses_package.__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Loss) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"train/losses/{name}.py must define exactly one Loss, it defines {found}"
    known = list(inspect.signature(found[0]).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(f"loss {name!r} has no option {unknown[0]!r}; it has: {', '.join(['weight', *known])}")
    loss: Loss = found[0](**options)
    return loss
