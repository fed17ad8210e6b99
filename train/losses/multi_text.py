"""Several texts per image, LaCLIP-MT (Fan et al. 2023, arXiv 2305.20088)."""

import torch

from train.contrast import cross_entropies, own_share, pair_losses
from train.loss import Loss, Outputs
from train.request import Present, Text, View


class MultiText(Loss):
    """The mean of InfoNCE over the drawn text and `count` more of each image, drawn from `columns`.

    The k-th texts of all images form one batch; an image without a k-th text sits that one out, as a row and as a negative.
    """

    def __init__(self, *, columns: tuple[str, ...] = ("rewrite",), count: int = 4) -> None:
        texts = Text(columns=columns, count=count)
        super().__init__((View(), Text(), texts, Present(texts)))
        self.texts = texts

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        # (n, d) and (n,) of a single text become (n, 1, d) and (n, 1).
        texts, present = outputs[self.texts], outputs[Present(self.texts)]
        all_texts, all_present = outputs.all(self.texts), outputs.all(Present(self.texts))
        if present.ndim == 1:
            texts, present, all_texts, all_present = (v[:, None] for v in (texts, present, all_texts, all_present))
        losses = [pair_losses(outputs).mean()]
        for k in range(self.texts.count):
            to_texts = cross_entropies(outputs, outputs[View()], all_texts[:, k], all_present[:, k])
            to_images = cross_entropies(outputs, texts[:, k], outputs.all(View()), all_present[:, k])
            share = own_share(present[:, k], all_present[:, k])
            losses.append((share * (to_texts + to_images)).mean() / 2)
        return {"multi_text": torch.stack(losses).mean()}
