"""The contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

import torch
from torch.nn import functional

from train.loss import Loss, Outputs
from train.request import Text, View


class InfoNCE(Loss):
    """Cross-entropy of each image among all texts of the batch and of each text among all images, averaged.

    `local_loss` has each process classify its own rows only (memory n x N instead of N x N); value and gradients are the same.
    """

    def __init__(self, *, local_loss: bool = True) -> None:
        super().__init__()
        self.local_loss = local_loss

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        images, texts = outputs.all(View()), outputs.all(Text())
        if self.local_loss:
            image_logits = outputs.logit_scale * outputs[View()] @ texts.T
            text_logits = outputs.logit_scale * outputs[Text()] @ images.T
            own = outputs.own_rows
        else:
            image_logits = outputs.logit_scale * images @ texts.T
            text_logits = image_logits.T
            own = torch.arange(len(images), device=images.device)
        return {
            "info_nce": (functional.cross_entropy(image_logits, own) + functional.cross_entropy(text_logits, own)) / 2
        }
