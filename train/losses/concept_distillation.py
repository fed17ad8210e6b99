"""Concept distillation of DiHT (Radenovic et al. 2023, arXiv 2301.02280), to be added to a contrastive loss."""

import torch
from torch import nn

from schemas.errors import InputError
from train.loss import Loss, Outputs
from train.request import Column, Pooled, Shape


class ConceptDistillation(Loss):
    """Cross-entropy of linear heads on the image tower with a teacher's stored soft labels; the teacher itself does not run.

    `ids` and `probabilities` are columns of lists: the teacher's most probable concepts and their probabilities, which are made to add
    up to 1. Several pairs of columns (objects, attributes) have a head each. Samples without concepts add nothing.
    """

    def __init__(
        self,
        *,
        ids: tuple[str, ...] = ("object_ids", "attribute_ids"),
        probabilities: tuple[str, ...] = ("object_probabilities", "attribute_probabilities"),
    ) -> None:
        if len(ids) != len(probabilities):
            raise InputError(
                f"concept_distillation: ids {ids} and probabilities {probabilities} belong together in pairs"
            )
        labels = [Column(name=name, kind="labels") for name in ids]
        shares = [
            Column(name=name, kind="numbers", least=0.0, as_long_as=column)
            for name, column in zip(probabilities, labels, strict=True)
        ]
        super().__init__((Pooled(), *labels, *shares))
        self.pairs = list(zip(labels, shares, strict=True))
        self.heads = nn.ModuleList()

    def build(self, shape: Shape) -> None:
        """Make a head for each vocabulary."""
        self.heads = nn.ModuleList([
            nn.Linear(shape.image_width, shape.num_labels[labels.key]) for labels, _ in self.pairs
        ])

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the sum over the vocabularies."""
        total = outputs.logit_scale.new_zeros(())
        for head, (labels, shares) in zip(self.heads, self.pairs, strict=True):
            ids = outputs[labels]
            weights = outputs[shares][:, : ids.shape[1]].masked_fill(ids < 0, 0.0)
            weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
            log_shares = head(outputs[Pooled()]).log_softmax(1).gather(1, ids.clamp_min(0))
            total = total - (weights * log_shares).sum(1).mean()
        return {"concept_distillation": total}
