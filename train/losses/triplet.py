"""Negative captions with pictures of their own, TripletCLIP (Patel et al. 2024, arXiv 2411.02545)."""

import torch

from train.contrast import cross_entropies, own_share
from train.loss import Loss, Outputs
from train.request import Column, Present, Text, View


class TripletCLIP(Loss):
    """NegCLIP's loss of picture, text and negative caption, plus the same of negative picture, negative caption and text.

    `negative` is a caption column. `picture` is a column with the uid of the sample, of this dataset, that shows it: made from the caption,
    or simply a picture like the own one; such samples may have weight 0. Samples that lack either leave the second term out.
    """

    def __init__(self, *, negative: str = "negatives", picture: str = "negative_uid") -> None:
        negatives = Text(columns=(negative,))
        partner = Column(name=picture, kind="uid")
        view = View(column=picture)
        super().__init__((View(), view, Text(), negatives, Present(negatives), partner))
        self.negative = negatives
        self.view = view
        self.partner = partner

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return both terms."""
        texts, negatives = outputs.all(Text()), outputs.all(self.negative)
        has_text, all_have_text = outputs[Present(self.negative)], outputs.all(Present(self.negative))
        both, all_both = has_text & (outputs[self.partner] >= 0), all_have_text & (outputs.all(self.partner) >= 0)
        everyone = torch.ones_like(all_both)
        to_texts = cross_entropies(
            outputs, outputs[View()], torch.cat([texts, negatives]), torch.cat([everyone, all_have_text])
        )
        to_images = cross_entropies(outputs, outputs[Text()], outputs.all(View()))
        to_negatives = cross_entropies(
            outputs, outputs[self.view], torch.cat([negatives, texts]), torch.cat([all_both, everyone])
        )
        to_negative_images = cross_entropies(outputs, outputs[self.negative], outputs.all(self.view), all_both)
        return {
            "triplet": (to_texts + to_images).mean() / 2,
            "triplet_negative": (own_share(both, all_both) * (to_negatives + to_negative_images)).mean() / 2,
        }
