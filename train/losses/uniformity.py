"""Alignment and uniformity (Wang and Isola 2020, arXiv 2005.10242) of pictures and texts (Fahim et al. 2024, arXiv 2405.18570)."""

import torch

from schemas.errors import InputError
from train.loss import Loss, Outputs
from train.request import Text, View


class Uniformity(Loss):
    """How far pictures are from their texts, and how evenly either fill the sphere; alone, or added to info_nce against its modality gap.

    `alignment` weighs the mean over the pairs of the distance to the power `power`. `uniformity` weighs the logarithm of the mean, over
    pairs of different samples, of exp(-`sharpness` times the squared distance): the mean of that of pictures and that of texts. `cross`
    weighs the same of pictures with other samples' texts. The logarithms are 0 or less, 0 where all is one point. `winnow evaluate
    --embedding` measures both.
    """

    def __init__(
        self,
        *,
        alignment: float = 1.0,
        uniformity: float = 1.0,
        cross: float = 0.0,
        power: float = 2.0,
        sharpness: float = 2.0,
    ) -> None:
        super().__init__()
        if not any((alignment, uniformity, cross)):
            raise InputError("uniformity: alignment, uniformity and cross are all 0; leave the loss out instead")
        if power <= 0 or sharpness <= 0:
            raise InputError(f"uniformity: power and sharpness must be above 0, got {power} and {sharpness}")
        self.alignment = alignment
        self.uniformity = uniformity
        self.cross = cross
        self.power = power
        self.sharpness = sharpness

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return each part that has a weight, weighted."""
        terms = {}
        if self.alignment:
            distances = torch.linalg.vector_norm(outputs[View()] - outputs[Text()], dim=-1)
            terms["uniformity_alignment"] = self.alignment * distances.pow(self.power).mean()
        if self.uniformity:
            spread = self._spread(outputs, View(), View()) + self._spread(outputs, Text(), Text())
            terms["uniformity_spread"] = self.uniformity * spread / 2
        if self.cross:
            terms["uniformity_cross"] = self.cross * self._spread(outputs, View(), Text())
        return terms

    def _spread(self, outputs: Outputs, one: View | Text, other: View | Text) -> torch.Tensor:
        """Return a value whose mean over the processes is the logarithm of the mean over all pairs, in value and gradients.

        A logarithm of own pairs would not do. So the logarithm is that of every process's pairs, as a constant, and what is derived is the
        own mean over it.
        """
        own, columns = outputs.own_rows, outputs.all(other)
        others = len(columns) - 1
        if not others:
            return (0 * outputs[one]).sum()  # no pairs, nothing to keep apart
        squares = 2 - 2 * outputs[one] @ columns.T
        is_own = torch.arange(len(columns), device=own.device) == own[:, None]
        mean = (-self.sharpness * squares).exp().masked_fill(is_own, 0.0).sum(1).mean() / others
        total = outputs.world.mean(mean).clamp_min(torch.finfo(mean.dtype).tiny)
        return total.log() + (mean - mean.detach()) / total
