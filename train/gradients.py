"""From one batch to the gradients of the whole batch's loss, in one piece or in parts that fit the memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed import World
from train.inputs import Inputs
from train.loss import Objective, Outputs
from train.request import Request, Teacher, teacher_requests, tower_requests

Towers = nn.Module  # an ImageTextModel, or one wrapped for several processes
_Answer = dict[str, torch.Tensor]
_SCALE = "logit_scale"


@dataclass(frozen=True)
class StepResult:
    """What one batch gave: the loss and its terms, means over the processes; everything detached."""

    loss: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    outputs: Outputs


def compute_gradients(
    towers: Towers,
    objective: Objective,
    inputs: Inputs,
    *,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]],
    num_parts: int = 1,
    seed: tuple[int, ...] = (0,),
) -> StepResult:
    """Add this batch's gradients to the parameters.

    The loss is computed on copies of the towers' outputs, and its gradients are then carried into the towers. With `num_parts` above 1
    the outputs are computed part by part without a graph first, and once more with one for the second half (Gao et al. 2021, arXiv
    2101.06983): every sample still sees the whole batch as negatives, and layers of the losses still see all of it, at the price of one
    more forward pass. `seed` fixes dropout, so that both passes draw alike.
    """
    parts = inputs.split(num_parts)
    requests = tower_requests(objective.needs)
    answers: list[_Answer] = []
    for number, part in enumerate(parts):
        _seed_dropout(seed, number)
        with autocast(), torch.set_grad_enabled(num_parts == 1):
            answers.append((towers if num_parts == 1 else _unwrap(towers))(part, requests))
    copies = {
        key: value.detach().requires_grad_(value.requires_grad or num_parts > 1)
        for key, value in _join(answers).items()
    }
    tensors = {key: value for key, value in copies.items() if key != _SCALE}
    tensors |= inputs.fields | _ask_teacher(objective, parts, autocast)
    outputs = Outputs(tensors=tensors, logit_scale=copies[_SCALE], world=world, autocast=autocast)
    loss, terms = objective(outputs)
    loss.backward()
    gradients = {key: value.grad for key, value in copies.items()}
    if num_parts == 1:
        _carry(answers[0], gradients)
    else:
        _carry_again(towers, parts, requests, gradients, autocast, seed)
    # The towers' gradients were averaged on the way (DistributedDataParallel).
    _average(objective.parameters(), world)
    return StepResult(world.mean(loss), {name: world.mean(term) for name, term in terms.items()}, outputs)


@torch.no_grad()
def _average(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Average the gradients over the processes in one exchange, however many parameters there are."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world.size == 1 or not gradients:
        return
    means = world.mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(means, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


def _carry_again(
    towers: Towers,
    parts: Sequence[_Answer],
    requests: Sequence[Request],
    gradients: Mapping[str, torch.Tensor | None],
    autocast: Callable[[], AbstractContextManager[object]],
    seed: tuple[int, ...],
) -> None:
    """Run the towers on each part once more, with a graph, and carry the part's gradients into them."""
    chunks = {key: value.chunk(len(parts)) for key, value in gradients.items() if value is not None and key != _SCALE}
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        _seed_dropout(seed, number)
        # Processes exchange gradients once, with the last part; the scale's gradient is whole already and enters there.
        with nullcontext() if is_last else _without_exchange(towers):
            with autocast():
                answer = towers(part, requests)
            own = {key: value[number] for key, value in chunks.items()}
            _carry(answer, {**own, _SCALE: gradients[_SCALE] if is_last else None})


def _carry(answer: _Answer, gradients: Mapping[str, torch.Tensor | None]) -> None:
    """Go on backwards from the towers' outputs; a parameter that no loss reaches gets a zero, for which the other processes wait."""
    reached = {key: value for key, value in answer.items() if value.requires_grad}
    found = {key: gradients.get(key) for key in reached}
    torch.autograd.backward(
        list(reached.values()),
        [torch.zeros_like(value) if found[key] is None else found[key] for key, value in reached.items()],
    )


@torch.no_grad()
def _ask_teacher(
    objective: Objective, parts: Sequence[_Answer], autocast: Callable[[], AbstractContextManager[object]]
) -> _Answer:
    requests = teacher_requests(objective.needs)
    if objective.teacher is None or not requests:
        return {}
    with autocast():
        answer = _join([objective.teacher(part, requests) for part in parts])
    return {Teacher(request).key: answer[request.key] for request in requests}


def _join(answers: Sequence[_Answer]) -> _Answer:
    if len(answers) == 1:
        return dict(answers[0])
    joined = {key: torch.cat([answer[key] for answer in answers]) for key in answers[0] if key != _SCALE}
    return {**joined, _SCALE: answers[0][_SCALE]}


def _unwrap(towers: Towers) -> nn.Module:
    return towers.module if isinstance(towers, DistributedDataParallel) else towers


def _without_exchange(towers: Towers) -> AbstractContextManager[object]:
    return towers.no_sync() if isinstance(towers, DistributedDataParallel) else nullcontext()


def _seed_dropout(seed: tuple[int, ...], part: int) -> None:
    # A function of step and rank instead of a saved generator state: nothing to restore, and exact at any step.
    torch.manual_seed(int(np.random.SeedSequence([*seed, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
