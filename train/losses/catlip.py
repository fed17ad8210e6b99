"""Pretraining as classification of the caption's nouns, CatLIP (Mehta et al. 2024, arXiv 2404.15653)."""

import torch
from torch import nn
from torch.nn import functional

from schemas.errors import InputError
from train.loss import Loss, Outputs
from train.request import Column, Pooled, Shape


class CatLIP(Loss):
    """A linear head on the image tower says which labels a sample has; the text tower neither runs nor learns.

    `labels` is a column of lists of words (or numbers); words on fewer than `min_count` samples are left out. `kind` is `bce`, the mean of
    the binary cross-entropies over all labels, or `ce`, the cross-entropy with even shares among the sample's labels.
    """

    def __init__(self, *, labels: str = "caption_tag_nouns", min_count: int = 1, kind: str = "bce") -> None:
        if kind not in {"bce", "ce"}:
            raise InputError(f"catlip: kind is bce or ce, got {kind!r}")
        column = Column(name=labels, kind="labels", min_count=min_count)
        super().__init__((Pooled(), column))
        self.labels = column
        self.kind = kind

    def build(self, shape: Shape) -> None:
        """Make the head, one output for each label."""
        self.head = nn.Linear(shape.image_width, shape.num_labels[self.labels.key])

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        logits, ids = self.head(outputs[Pooled()]), outputs[self.labels]
        # One column more than labels takes the ends of short lists.
        targets = logits.new_zeros(len(logits), logits.shape[1] + 1)
        targets.scatter_(1, torch.where(ids < 0, logits.shape[1], ids), 1.0)
        targets = targets[:, :-1]
        if self.kind == "bce":
            return {"catlip": functional.binary_cross_entropy_with_logits(logits, targets)}
        shares = targets / targets.sum(1, keepdim=True).clamp_min(1)
        return {"catlip": -(shares * logits.log_softmax(1)).sum(1).mean()}
