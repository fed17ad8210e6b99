"""From one batch to the gradients of the whole batch's loss, in one piece or in parts that fit the memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed import World
from train.loss import Objective, Outputs

# Images (n, 3, s, s), token ids (n, l) and attention mask (n, l).
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Towers = nn.Module  # an ImageTextModel, or one wrapped for several processes


def compute_gradients(
    towers: Towers,
    objective: Objective,
    inputs: Inputs,
    *,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]],
    num_parts: int = 1,
    seed: tuple[int, ...] = (0,),
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add this batch's gradients to the parameters; return the loss and its terms, both means over the processes and detached.

    With `num_parts` above 1 every sample still sees the whole batch as negatives: features are computed part by part without a graph, the
    loss gives the gradient of each feature, and a second pass carries those into the towers (Gao et al. 2021, arXiv 2101.06983). It costs
    one more forward pass. `seed` fixes dropout, so that both passes draw alike.
    """
    if num_parts == 1:
        _seed_dropout(seed, 0)
        with autocast():
            images, texts, scale = towers(*inputs)
        loss, terms = objective(Outputs(image_features=images, text_features=texts, logit_scale=scale, world=world))
        loss.backward()
    else:
        loss, terms = _compute_in_parts(towers, objective, inputs, world, autocast, num_parts, seed)
    # The towers' gradients were averaged on the way (DistributedDataParallel); a loss's own parameters are few.
    for parameter in objective.parameters():
        if parameter.grad is not None:
            parameter.grad = world.mean(parameter.grad)
    return world.mean(loss), {name: world.mean(term) for name, term in terms.items()}


def _compute_in_parts(
    towers: Towers,
    objective: Objective,
    inputs: Inputs,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]],
    num_parts: int,
    seed: tuple[int, ...],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    parts: list[Inputs] = list(zip(*(value.chunk(num_parts) for value in inputs), strict=True))
    inner = towers.module if isinstance(towers, DistributedDataParallel) else towers
    cached = []
    for number, part in enumerate(parts):
        _seed_dropout(seed, number)
        with torch.no_grad(), autocast():
            cached.append(inner(*part))
    images = torch.cat([features[0] for features in cached]).requires_grad_()
    texts = torch.cat([features[1] for features in cached]).requires_grad_()
    scale = cached[0][2].detach().requires_grad_()
    loss, terms = objective(Outputs(image_features=images, text_features=texts, logit_scale=scale, world=world))
    loss.backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert scale.grad is not None
    gradients = zip(images.grad.chunk(num_parts), texts.grad.chunk(num_parts), strict=True)
    for number, (part, (image_gradient, text_gradient)) in enumerate(zip(parts, gradients, strict=True)):
        is_last = number == len(parts) - 1
        _seed_dropout(seed, number)
        # Processes exchange gradients once, with the last part; the scale's gradient is whole already and enters there.
        with _without_exchange(towers) if not is_last else nullcontext():
            with autocast():
                part_images, part_texts, part_scale = towers(*part)
            torch.autograd.backward(
                [part_images, part_texts, part_scale],
                [image_gradient, text_gradient, scale.grad if is_last else torch.zeros_like(scale)],
            )
    return loss, terms


def _without_exchange(towers: Towers) -> AbstractContextManager[object]:
    return towers.no_sync() if isinstance(towers, DistributedDataParallel) else nullcontext()


def _seed_dropout(seed: tuple[int, ...], part: int) -> None:
    # A function of step and rank instead of a saved generator state: nothing to restore, and exact at any step.
    torch.manual_seed(int(np.random.SeedSequence([*seed, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
