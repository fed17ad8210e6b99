"""Contrast with negative captions, NegCLIP (Yuksekgonul et al. 2022, arXiv 2210.01936)."""

import torch

from train.contrast import cross_entropies
from train.loss import Loss, Outputs
from train.request import Present, Text, View


class NegCLIP(Loss):
    """InfoNCE whose images choose among all texts of the batch and all negative captions; texts choose among images as ever.

    `negative` is a caption column, of which `count` are drawn; samples without one add nothing. Without any this is InfoNCE.
    """

    def __init__(self, *, negative: str = "negatives", count: int = 1) -> None:
        negatives = Text(columns=(negative,), count=count)
        super().__init__((View(), Text(), negatives, Present(negatives)))
        self.negatives = negatives

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        everyone = torch.ones(len(outputs.all(Text())), dtype=torch.bool, device=outputs.logit_scale.device)
        texts = torch.cat([outputs.all(Text()), outputs.all(self.negatives).flatten(0, -2)])
        present = torch.cat([everyone, outputs.all(Present(self.negatives)).flatten()])
        to_texts = cross_entropies(outputs, outputs[View()], texts, present)
        to_images = cross_entropies(outputs, outputs[Text()], outputs.all(View()))
        return {"negclip": (to_texts + to_images).mean() / 2}
