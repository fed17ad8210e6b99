"""Contrast weighted by graded relevance, as Generalized Contrastive Learning has it (Zhu et al. 2024, arXiv 2404.08535)."""

import torch

from train.contrast import pair_losses
from train.loss import Loss, Outputs
from train.request import Column, Text, View


class GradedContrast(Loss):
    """InfoNCE in which each pair counts by its grade: the weighted mean over the batch.

    `relevance` is a column of numbers of 0 or more; equal ones are InfoNCE.
    """

    def __init__(self, *, relevance: str = "relevance") -> None:
        column = Column(name=relevance, least=0.0)
        super().__init__((View(), Text(), column))
        self.relevance = column

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        # Divided by the mean over the whole batch, so that the mean over the processes is the weighted mean.
        mean = outputs.all(self.relevance).mean().clamp_min(torch.finfo(torch.float32).tiny)
        return {"graded": (outputs[self.relevance] / mean * pair_losses(outputs)).mean()}
