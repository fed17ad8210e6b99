"""Contrast with targets softened by each pair's noise probability, after NLIP (arXiv 2212.07086) and NEVLP (arXiv 2409.09582)."""

import torch

from train.contrast import logits_both_ways, soft_cross_entropy
from train.loss import Loss, Outputs
from train.request import Column, Text, View


class NoiseAdaptive(Loss):
    """InfoNCE in which a pair that is probably wrong is asked for less: `cap` times its probability goes to the rest of the batch, evenly.

    `probability` is a column of numbers from 0 to 1; where all are 0 this is InfoNCE.
    """

    def __init__(self, *, probability: str = "noise_probability", cap: float = 0.5) -> None:
        column = Column(name=probability, least=0.0, most=1.0)
        super().__init__((View(), Text(), column))
        self.probability = column
        self.cap = cap

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        logits = logits_both_ways(outputs)
        smoothing = (self.cap * outputs[self.probability].clamp(0, 1))[:, None]
        count = logits[0].shape[1]
        is_own = torch.arange(count, device=smoothing.device) == outputs.own_rows[:, None]
        targets = torch.where(is_own, 1 - smoothing, smoothing / max(1, count - 1))
        return {"noise_adaptive": soft_cross_entropy(logits, (targets, targets))}
