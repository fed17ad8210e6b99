"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343)."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.errors import InputError
from train.loss import Loss, Outputs
from train.request import Column, Text, View


class SigLIP(Loss):
    """Each pair of the batch on its own is a match or not: -log sigmoid(z (s<i,t> + b)), summed over the pairs, per image.

    Computed `chunk` texts at a time and once more on the way back, so that memory is n x chunk however large the batch. From random
    weights the factor s starts at 10 and the bias b, which is learned, at `bias`; `init` brings its own of both where it has them.
    With `label`, a column of integers or names, what pairs of different samples with one label are is `same_label`: `match`es too, or
    `masked`, neither matches nor negatives, as copies are. A sample without one (null, or a negative number) matches itself only.
    """

    initial_logit_scale: ClassVar[float] = 10.0

    def __init__(self, *, bias: float = -10.0, chunk: int = 1024, label: str = "", same_label: str = "match") -> None:
        if same_label not in {"match", "masked"}:
            raise InputError(f"siglip: same_label is match or masked, got {same_label!r}")
        column = Column(name=label, kind="label") if label else None
        super().__init__((View(), Text()) if column is None else (View(), Text(), column))
        self.bias = nn.Parameter(torch.tensor(bias))
        self.chunk = chunk
        self.label = column
        self.is_masked = same_label == "masked"

    @property
    def logit_bias(self) -> nn.Parameter:
        """The bias b."""
        return self.bias

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        images, texts, own = outputs[View()], outputs.all(Text()), outputs.own_rows
        labels = None if self.label is None else outputs[self.label]
        all_labels = None if self.label is None else outputs.all(self.label)
        total = images.new_zeros(())
        for start in range(0, len(texts), self.chunk):
            part = slice(start, start + self.chunk)
            alike = (labels, None if all_labels is None else all_labels[part], self.is_masked)
            arguments = (images, texts[part], outputs.logit_scale, self.bias, own - start, *alike)
            total = total + checkpoint(_sum_pairs, *arguments, use_reentrant=False, preserve_rng_state=False)
        return {"siglip": total / len(images)}


def _sum_pairs(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    own: torch.Tensor,
    labels: torch.Tensor | None,
    text_labels: torch.Tensor | None,
    is_masked: bool,
) -> torch.Tensor:
    logits = scale * images @ texts.T + bias
    is_own = torch.arange(len(texts), device=own.device) == own[:, None]
    if labels is None or text_labels is None:
        return -functional.logsigmoid(torch.where(is_own, logits, -logits)).sum()
    is_alike = (labels[:, None] == text_labels) & (labels[:, None] >= 0)
    is_match = is_own if is_masked else is_own | is_alike
    losses = -functional.logsigmoid(torch.where(is_match, logits, -logits))
    if is_masked:
        losses = torch.where(is_alike & ~is_own, 0.0, losses)
    return losses.sum()
