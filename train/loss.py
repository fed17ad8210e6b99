"""What a loss receives and returns, how it is found, and how several are added up.

A new loss is one file in `train/losses/`: a class derived from `Loss`, found by the name of its file, its options the keyword arguments
of its constructor, its requests (`train/request.py`) in `needs`. A recipe names it with its weight, or with its weight and options:

    losses: {info_nce: 1.0}
    losses: {info_nce: {weight: 1.0, local_loss: false}, cyclip: 1.0}
"""

import importlib
import inspect
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import ClassVar

import torch
from torch import nn

from schemas.errors import InputError
from train import losses as losses_package
from train.config import LossOption, LossSetting
from train.distributed import World
from train.request import Request, Shape, Teacher, Text, View


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The answers to the losses' requests for this process's share of the batch; row i belongs to sample i in all of them."""

    tensors: Mapping[str, torch.Tensor]  # by the key of the request
    logit_scale: torch.Tensor  # the factor on cosines itself, not its logarithm
    world: World = field(default_factory=World)
    autocast: Callable[[], AbstractContextManager[object]] = (
        nullcontext  # what the towers ran under, for a loss's large layers
    )
    _gathered: dict[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, request: Request) -> torch.Tensor:
        """Return the answer for this process's rows."""
        return self.tensors[request.key]

    def all(self, request: Request) -> torch.Tensor:
        """Return the answer for every process's rows in batch order, with gradients; exchanged once however many losses ask."""
        if request.key not in self._gathered:
            # Even where the first who asks wants no gradients: the next may.
            with torch.enable_grad():
                self._gathered[request.key] = self.world.gather(self.tensors[request.key])
        return self._gathered[request.key]

    @property
    def num_rows(self) -> int:
        """The number of samples of this process."""
        return len(next(iter(self.tensors.values())))

    @property
    def own_rows(self) -> torch.Tensor:
        """Where this process's rows lie in the whole batch: the columns of its positives."""
        first = self.world.rank * self.num_rows
        return torch.arange(first, first + self.num_rows, device=self.logit_scale.device)


class Loss(nn.Module, ABC):
    """A loss over one batch; it may hold parameters, which are trained with the model's, and buffers, which are saved with them.

    Gradients are averaged over the processes, so the mean over the ranks of what is returned must be the loss of the whole batch.
    """

    # Where training starts from random weights: the factor on cosines to start with; 0 leaves it to the model.
    initial_logit_scale: ClassVar[float] = 0.0

    def __init__(self, needs: tuple[Request, ...] = (View(), Text())) -> None:
        """Keep what the loss asks for: `outputs[request]` holds the answers."""
        super().__init__()
        self.needs = needs
        self.locks_images = False  # whether the image tower must not learn
        self.needs_one_caption = False  # whether the drawn texts must all be of one column, as something stored is
        self.batch_parts = 1  # equal parts that the batch must divide into
        self.teacher_momentum = 0.0  # of the copy that answers requests for a `Teacher`

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """What the loss learns to add to the scaled cosines and is the model's, as the scale is; None: nothing."""
        return None

    def build(self, shape: Shape) -> None:
        """Make the layers that depend on the model; called once, before the optimizer is made."""

    def teacher_momentum_at(self, number: int) -> float:
        """Return the share of itself that the teacher keeps at its update of this number, from 1; always `teacher_momentum` by default."""
        del number
        return self.teacher_momentum

    def follow(self, momentum: float) -> None:
        """Move what the loss itself keeps beside the teacher towards what it learns, after a step; it keeps the share `momentum` of itself."""

    @abstractmethod
    def forward(self, outputs: Outputs) -> Mapping[str, torch.Tensor]:
        """Return named scalar terms; their sum is the loss, each is logged under its name."""


class Objective(nn.Module):
    """The weighted sum of the losses a configuration names; one of weight 0 is as if it were not named."""

    teacher: nn.Module | None
    num_teacher_updates: torch.Tensor  # where there is a teacher

    def __init__(self, settings: Mapping[str, LossSetting]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.losses = nn.ModuleDict()
        self.teacher = None
        for name, setting in settings.items():
            options = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
            weight = float(options.pop("weight", 1.0))  # type: ignore[arg-type]
            loss = make_loss(name, options)
            if not 0 <= weight < math.inf:
                raise InputError(f"the weight of loss {name!r} is 0 or more, got {weight}")
            if weight:
                # With weight 0 not even its wishes count: what is read, what is locked, where the scale starts.
                self.weights[name] = weight
                self.losses[name] = loss
        if not self.losses:
            raise InputError(f"losses {', '.join(settings)} have weight 0; give one of them another")

    @property
    def needs(self) -> tuple[Request, ...]:
        """What the losses ask for, each request once."""
        return tuple(dict.fromkeys(request for loss in self._losses() for request in loss.needs))

    @property
    def locks_images(self) -> bool:
        """Whether a loss wants the image tower as it is."""
        return any(loss.locks_images for loss in self._losses())

    @property
    def needs_one_caption(self) -> bool:
        """Whether a loss compares the drawn texts with something stored of one caption."""
        return any(loss.needs_one_caption for loss in self._losses())

    @property
    def batch_parts(self) -> int:
        """The number of equal parts that the batch must divide into."""
        return math.lcm(*(loss.batch_parts for loss in self._losses()))

    @property
    def initial_logit_scale(self) -> float:
        """The factor on cosines that the first loss with a wish starts from, or 0."""
        return next((loss.initial_logit_scale for loss in self._losses() if loss.initial_logit_scale), 0.0)

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """The bias that the first loss with one learns, or None."""
        return next((loss.logit_bias for loss in self._losses() if loss.logit_bias is not None), None)

    def build(self, shape: Shape, copy_towers: Callable[[], nn.Module]) -> None:
        """Make the losses' layers, and the teacher where a loss asks for one: a copy of the towers, saved with the losses' state."""
        for loss in self._losses():
            loss.build(shape)
        if any(isinstance(request, Teacher) for request in self.needs):
            self.teacher = copy_towers().requires_grad_(False).eval()
            self.register_buffer("num_teacher_updates", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Outputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the total, and each term before its weight (empty where there is only one term, which is then the total)."""
        terms: dict[str, torch.Tensor] = {}
        total = outputs.logit_scale.new_zeros(())
        for name, loss in self.losses.items():
            parts = loss(outputs)
            terms.update(parts)
            total = total + self.weights[name] * torch.stack(list(parts.values())).sum()
        return total, terms if len(terms) > 1 else {}

    @torch.no_grad()
    def follow(self, towers: nn.Module) -> None:
        """Move the teacher, where there is one, towards the towers after a step."""
        if self.teacher is None:
            return
        self.num_teacher_updates += 1
        number = int(self.num_teacher_updates)
        momentum = max(loss.teacher_momentum_at(number) for loss in self._losses())
        for slow, fast in zip(self.teacher.parameters(), towers.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)
        for loss in self._losses():
            loss.follow(momentum)

    def _losses(self) -> list[Loss]:
        return [loss for loss in self.losses.values() if isinstance(loss, Loss)]


def discover_losses() -> list[str]:
    """Return the names of the losses there are: the files of `train/losses/`."""
    return sorted(module.name for module in pkgutil.iter_modules(losses_package.__path__))


def loss_class(name: str) -> type[Loss]:
    """Return the class of the file `train/losses/<name>.py`."""
    if name not in discover_losses():
        near = get_close_matches(name, discover_losses(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"unknown loss {name!r}{hint}; there are: {', '.join(discover_losses())}")
    module = importlib.import_module(f"{losses_package.__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Loss) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"train/losses/{name}.py must define exactly one Loss, it defines {found}"
    return found[0]


def make_loss(name: str, options: Mapping[str, LossOption]) -> Loss:
    """Build the loss of the file `train/losses/<name>.py` with its options; a list where a tuple is expected will do."""
    cls = loss_class(name)
    known = inspect.signature(cls).parameters
    values = {}
    for option, value in options.items():
        if option not in known:
            raise InputError(f"loss {name!r} has no option {option!r}; it has: {', '.join(['weight', *known])}")
        values[option] = _check_option(name, option, value, known[option].default)
    return cls(**values)  # type: ignore[arg-type]


def _check_option(name: str, option: str, value: object, default: object) -> object:
    """Return the value with the type of the option's default."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(default) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if default is not inspect.Parameter.empty and type(value) is not type(default):
        raise InputError(
            f"option {option!r} of loss {name!r} must be of type {type(default).__name__} like {default!r}, got {value!r}"
        )
    return value
