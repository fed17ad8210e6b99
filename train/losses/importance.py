"""Contrast whose expectation under weighted draws is that of even draws: importance sampling."""

import torch
from torch.nn import functional

from train.loss import Loss, Outputs
from train.request import Rate, Request, Text, View


class ImportanceContrast(Loss):
    """InfoNCE in which each pair counts by one over its rate of draws, so that weights decide how often it is seen, not how much it matters.

    A sample drawn at r times the rate of an even draw counts 1 / r, at most `most`: a cap costs a little bias and keeps rare draws from
    ruling a batch. With `negatives` a sample counts as much in the sums over negatives, which then have the expectation of even draws
    too. Equal weights are InfoNCE. Not with `replacement: false`, repetition and curation, whose draws are not in proportion to weights.
    """

    def __init__(self, *, most: float = 10.0, negatives: bool = True) -> None:
        super().__init__((View(), Text(), Rate()))
        self.most = most
        self.negatives = negatives

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        factors, all_factors = (1 / rates for rates in (outputs[Rate()], outputs.all(Rate())))
        shares = all_factors.clamp(max=self.most).log()
        losses = [
            self._direction(outputs, View(), Text(), shares),
            self._direction(outputs, Text(), View(), shares),
        ]
        return {"importance": (factors.clamp(max=self.most) * torch.stack(losses).mean(0)).mean()}

    def _direction(self, outputs: Outputs, one: Request, other: Request, shares: torch.Tensor) -> torch.Tensor:
        logits = outputs.logit_scale * outputs[one] @ outputs.all(other).T
        own = outputs.own_rows
        if self.negatives:
            is_own = torch.arange(logits.shape[1], device=own.device) == own[:, None]
            logits = logits + shares.expand_as(logits).masked_fill(is_own, 0.0)
        return functional.cross_entropy(logits, own, reduction="none")
