"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343)."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.loss import Loss, Outputs
from train.request import Text, View


class SigLIP(Loss):
    """Each pair of the batch on its own is a match or not: -log sigmoid(z (s<i,t> + b)), summed over the pairs, per image.

    Computed `chunk` texts at a time and once more on the way back, so that memory is n x chunk however large the batch; the bias b is
    learned. From random weights the factor s starts at 10.
    """

    initial_logit_scale: ClassVar[float] = 10.0

    def __init__(self, *, bias: float = -10.0, chunk: int = 1024) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))
        self.chunk = chunk

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        images, texts, own = outputs[View()], outputs.all(Text()), outputs.own_rows
        total = images.new_zeros(())
        for start in range(0, len(texts), self.chunk):
            part = texts[start : start + self.chunk]
            arguments = (images, part, outputs.logit_scale, self.bias, own - start)
            total = total + checkpoint(_sum_pairs, *arguments, use_reentrant=False, preserve_rng_state=False)
        return {"siglip": total / len(images)}


def _sum_pairs(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, own: torch.Tensor
) -> torch.Tensor:
    logits = scale * images @ texts.T + bias
    is_match = torch.arange(len(texts), device=own.device) == own[:, None]
    return -functional.logsigmoid(torch.where(is_match, logits, -logits)).sum()
