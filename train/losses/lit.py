"""Contrast with a locked image tower, LiT (Zhai et al. 2021, arXiv 2111.07991)."""

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.loss import Loss, Outputs
from train.request import Column, Request, Shape, Text, View


class LiT(Loss):
    """InfoNCE that trains the text tower only.

    `embedding` names a column with the image tower's stored embeddings, such as `clip_embedding`'s of the model named in `init`: then no
    picture is read or decoded, and the tower does not run. Without it the locked tower runs on every crop.
    """

    def __init__(self, *, embedding: str = "") -> None:
        image: Request = Column(name=embedding, kind="vector") if embedding else View()
        super().__init__((image, Text()))
        self.image = image
        self.locks_images = True

    def build(self, shape: Shape) -> None:
        """Check that stored embeddings lie in the model's space."""
        width = shape.widths.get(self.image.key, shape.embed_dim)
        if width != shape.embed_dim:
            raise InputError(
                f"lit: the stored embeddings have {width} numbers, the model {shape.embed_dim}; set init to the model that made them, "
                f"or model_options embed_dim to {width}"
            )

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        images, all_images = (functional.normalize(v, dim=1) for v in (outputs[self.image], outputs.all(self.image)))
        own, scale = outputs.own_rows, outputs.logit_scale
        to_texts = functional.cross_entropy(scale * images @ outputs.all(Text()).T, own)
        to_images = functional.cross_entropy(scale * outputs[Text()] @ all_images.T, own)
        return {"lit": (to_texts + to_images) / 2}
