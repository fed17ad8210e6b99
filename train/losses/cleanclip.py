"""The in-modal terms of CleanCLIP (Bansal et al. 2023, arXiv 2303.03323), to be added to a contrastive loss."""

import torch

from train.contrast import cross_entropies
from train.loss import Loss, Outputs
from train.request import Text, View


class CleanCLIP(Loss):
    """InfoNCE between each picture and an augmented view of it, and between each text and an augmented one, averaged.

    Fine-tuning on clean pairs with it unlearns backdoors: a trigger no longer stands for a caption. Uses the model's own scale. Views are
    augmented as SimCLR's, where the authors use AutoAugment, and texts have words swapped or left out, none put in or replaced by synonyms.
    """

    def __init__(self) -> None:
        view, text = View(number=1), Text(variant="augmented")
        super().__init__((View(), view, Text(), text))
        self.pairs = ((View(), view), (Text(), text))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        losses = [
            cross_entropies(outputs, outputs[one], outputs.all(other)).mean()
            for pair in self.pairs
            for one, other in (pair, pair[::-1])
        ]
        return {"cleanclip": torch.stack(losses).mean()}
