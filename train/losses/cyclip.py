"""The two consistency terms of CyCLIP (Goel et al. 2022, arXiv 2205.14459), to be added to a contrastive loss."""

import torch

from train.loss import Loss, Outputs
from train.request import Text, View


class CyCLIP(Loss):
    """How far cosines are from being alike in both modalities: squares summed over the pairs of the batch, per sample.

    `in_modal` weighs (<i_j, i_k> - <t_j, t_k>)^2, `cross_modal` (<i_j, t_k> - <i_k, t_j>)^2.
    """

    def __init__(self, *, in_modal: float = 0.25, cross_modal: float = 0.25) -> None:
        super().__init__()
        self.in_modal = in_modal
        self.cross_modal = cross_modal

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return both terms, weighted."""
        images, texts = outputs[View()], outputs[Text()]
        all_images, all_texts = outputs.all(View()), outputs.all(Text())
        in_modal = (images @ all_images.T - texts @ all_texts.T).square().sum(1).mean()
        cross_modal = (images @ all_texts.T - texts @ all_images.T).square().sum(1).mean()
        return {"cyclip_in_modal": self.in_modal * in_modal, "cyclip_cross_modal": self.cross_modal * cross_modal}
