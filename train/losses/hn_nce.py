"""Importance-sampled hard negatives, HN-NCE, of DiHT (Radenovic et al. 2023, arXiv 2301.02280)."""

import math

import torch

from train.loss import Loss, Outputs
from train.request import Text, View


class HNNCE(Loss):
    """InfoNCE whose negatives weigh more the more similar they are: w_ij = (n - 1) softmax over j of beta times the logits.

    The positive enters the denominator with the factor `alpha`. `alpha` 1 and `beta` 0 are InfoNCE; gradients flow through the weights.
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.25) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        own = outputs.own_rows
        image_logits = outputs.logit_scale * outputs[View()] @ outputs.all(Text()).T
        text_logits = outputs.logit_scale * outputs[Text()] @ outputs.all(View()).T
        return {"hn_nce": (self._direction(image_logits, own) + self._direction(text_logits, own)) / 2}

    def _direction(self, logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        is_own = torch.arange(logits.shape[1], device=own.device) == own[:, None]
        positives = logits[is_own]
        if logits.shape[1] == 1:
            return (0 * positives).mean()  # no negatives, nothing to tell apart
        negatives = logits.masked_fill(is_own, -torch.inf)
        # The weights in logarithms; masked before beta, because 0 times infinity is no number.
        powers = (self.beta * logits).masked_fill(is_own, -torch.inf)
        log_weights = math.log(logits.shape[1] - 1) + powers - powers.logsumexp(1, keepdim=True)
        weighted = log_weights.masked_fill(is_own, 0.0) + negatives
        if self.alpha:
            weighted = torch.where(is_own, logits + math.log(self.alpha), weighted)
        return (weighted.logsumexp(1) - positives).mean()
