"""Soft targets by optimal transport, OTTER (Wu et al. 2021, arXiv 2112.09445)."""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from train.contrast import pair_losses
from train.loss import Loss, Outputs
from train.request import Teacher, Text, View

# What pushes a pair's own place out of the transport: InfoNCE asks for it already.
_OWN_COST = 100.0
# Of the logarithms of both factors on cosines.
_LOG_SCALE_START = 3.9
_SCALE_MAX = 100.0


class OTTER(Loss):
    """`alpha` times InfoNCE, the rest the divergence from matches that a slowly following teacher finds over the whole batch.

    The cost of matching image i with text j falls with the teacher's cosines of the two images, the two texts, and the two; Sinkhorn's
    iterations on exp(-cost / `sharpness`) make the matches even. `alpha` 1 is InfoNCE. From random weights the factor on cosines starts
    at exp(3.9); the divergence has a factor of its own, which always does. The teacher keeps the share `momentum` of itself at each
    step, at first less, as the authors' does: 3/12 at the first step, 4/13 at the second, 0.999 from step 8,989.
    """

    initial_logit_scale: ClassVar[float] = math.exp(_LOG_SCALE_START)

    def __init__(
        self, *, alpha: float = 0.5, sharpness: float = 0.15, iterations: int = 5, momentum: float = 0.999
    ) -> None:
        super().__init__((View(), Text(), Teacher(View()), Teacher(Text())))
        self.alpha = alpha
        self.sharpness = sharpness
        self.iterations = iterations
        self.teacher_momentum = momentum
        self.log_scale = nn.Parameter(torch.tensor(_LOG_SCALE_START))

    def teacher_momentum_at(self, number: int) -> float:
        """Return the authors' (1 + n) / (10 + n), at most the momentum; they update once before the first step, to no effect."""
        count = number + 1
        return min(self.teacher_momentum, (1 + count) / (10 + count))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return both parts."""
        with torch.no_grad():
            images, texts = outputs.all(Teacher(View())), outputs.all(Teacher(Text()))
            closeness = images @ images.T + texts @ texts.T + images @ texts.T
            cost = -closeness + _OWN_COST * torch.eye(len(images), device=images.device)
            own = outputs.own_rows
            targets = [sinkhorn(matrix, self.sharpness, self.iterations)[own] for matrix in (cost, cost.T)]
        scale = self.log_scale.exp().clamp_max(_SCALE_MAX)
        pairs = ((outputs[View()], outputs.all(Text())), (outputs[Text()], outputs.all(View())))
        parts = [
            functional.kl_div((scale * rows @ columns.T).log_softmax(1), target, reduction="batchmean")
            for (rows, columns), target in zip(pairs, targets, strict=True)
        ]
        return {
            "otter_contrast": self.alpha * pair_losses(outputs).mean(),
            "otter_transport": (1 - self.alpha) * (parts[0] + parts[1]) / 2,
        }


def sinkhorn(cost: torch.Tensor, sharpness: float, iterations: int) -> torch.Tensor:
    """Return the plan that moves even mass at low cost, blurred by `sharpness`, with each row made to add up to 1."""
    log_plan = -cost / sharpness
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(0).log_softmax(1)
    return log_plan.exp()
