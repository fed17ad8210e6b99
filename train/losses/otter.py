"""Soft targets by optimal transport, OTTER (Wu et al. 2021, arXiv 2112.09445)."""

import math
from typing import ClassVar

import torch
from torch.nn import functional

from train.contrast import logits_both_ways, pair_losses
from train.loss import Loss, Outputs
from train.request import Teacher, Text, View

# What pushes a pair's own place out of the transport: InfoNCE asks for it already.
_OWN_COST = 100.0


class OTTER(Loss):
    """`alpha` times InfoNCE, the rest the divergence from matches that a slowly following teacher finds over the whole batch.

    The cost of matching image i with text j falls with the teacher's cosines of the two images, the two texts, and the two; Sinkhorn's
    iterations on exp(-cost / `sharpness`) make the matches even. `alpha` 1 is InfoNCE. From random weights the factor starts at exp(3.9).
    """

    initial_logit_scale: ClassVar[float] = math.exp(3.9)

    def __init__(
        self, *, alpha: float = 0.5, sharpness: float = 0.15, iterations: int = 5, momentum: float = 0.999
    ) -> None:
        super().__init__((View(), Text(), Teacher(View()), Teacher(Text())))
        self.alpha = alpha
        self.sharpness = sharpness
        self.iterations = iterations
        self.teacher_momentum = momentum

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return both parts."""
        with torch.no_grad():
            images, texts = outputs.all(Teacher(View())), outputs.all(Teacher(Text()))
            closeness = images @ images.T + texts @ texts.T + images @ texts.T
            cost = -closeness + _OWN_COST * torch.eye(len(images), device=images.device)
            own = outputs.own_rows
            targets = [sinkhorn(matrix, self.sharpness, self.iterations)[own] for matrix in (cost, cost.T)]
        parts = [
            functional.kl_div(logits.log_softmax(1), target, reduction="batchmean")
            for logits, target in zip(logits_both_ways(outputs), targets, strict=True)
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
