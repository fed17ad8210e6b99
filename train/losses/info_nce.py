"""The contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.loss import Loss, Outputs
from train.request import Text, View


class InfoNCE(Loss):
    """Cross-entropy of each image among all texts of the batch and of each text among all images, averaged.

    `image_weight` and `text_weight` are how much the two count, relative to each other; equal ones are CLIP, 0.75 and 0.25 ConVIRT
    (Zhang et al. 2020, arXiv 2010.00747). `local_loss` has each process classify its own rows only (memory n x N instead of N x N); value
    and gradients are the same.
    """

    def __init__(self, *, local_loss: bool = True, image_weight: float = 1.0, text_weight: float = 1.0) -> None:
        super().__init__()
        if min(image_weight, text_weight) < 0 or not image_weight + text_weight:
            raise InputError(
                "info_nce: image_weight and text_weight must be 0 or more, and one of them above, "
                f"got {image_weight} and {text_weight}"
            )
        self.local_loss = local_loss
        self.image_weight = image_weight
        self.text_weight = text_weight

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
        to_texts = self.image_weight * functional.cross_entropy(image_logits, own)
        to_images = self.text_weight * functional.cross_entropy(text_logits, own)
        return {"info_nce": (to_texts + to_images) / (self.image_weight + self.text_weight)}
