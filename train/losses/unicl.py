"""Contrast in image-text-label space, UniCL (Yang et al. 2022, arXiv 2204.03610)."""

import torch

from train.contrast import logits_both_ways, soft_cross_entropy
from train.loss import Loss, Outputs
from train.request import Column, Text, View


class UniCL(Loss):
    """InfoNCE in which every pair of samples with one label is a match; each row's target is shared evenly among its matches.

    `label` is a column of integers or names; a sample without one (null, or a negative number) matches itself only.
    """

    def __init__(self, *, label: str = "label") -> None:
        column = Column(name=label, kind="label")
        super().__init__((View(), Text(), column))
        self.label = column

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        labels, all_labels, own = outputs[self.label], outputs.all(self.label), outputs.own_rows
        is_own = torch.arange(len(all_labels), device=own.device) == own[:, None]
        matches = ((labels[:, None] == all_labels) & (labels[:, None] >= 0) | is_own).float()
        targets = matches / matches.sum(1, keepdim=True)
        return {"unicl": soft_cross_entropy(logits_both_ways(outputs), (targets, targets))}
