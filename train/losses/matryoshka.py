"""Embeddings whose beginnings are embeddings too, Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147)."""

from itertools import takewhile

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.contrast import cross_entropies
from train.loss import Loss, Outputs
from train.request import Shape, Text, View

# The authors halve the width of an embedding until this many numbers are left, or the next fewer: 2048 to 8, 768 to 12.
_NARROWEST = 8


class Matryoshka(Loss):
    """InfoNCE of the first numbers of each embedding, made unit vectors again, at several `widths`; their sum.

    Without `widths` they are the model's, its half, its quarter and so on down to 8. `weights` has one number of 0 or more for each width,
    which are 1 without it, as the authors' are. The model's width alone is InfoNCE. To use a model's first numbers, cut both sides'
    embeddings and scale them to length 1.
    """

    def __init__(self, *, widths: tuple[float, ...] = (), weights: tuple[float, ...] = ()) -> None:
        super().__init__()
        if not all(_is_number(width) and width >= 1 and width == int(width) for width in widths) or (
            len(set(widths)) < len(widths)
        ):
            raise InputError(f"matryoshka: widths are different whole numbers of 1 or more, got {list(widths)}")
        if weights and not (all(_is_number(weight) and weight >= 0 for weight in weights) and any(weights)):
            raise InputError(f"matryoshka: weights are numbers of 0 or more, one of them above, got {list(weights)}")
        self.widths = tuple(map(int, widths))
        self.width_weights = tuple(map(float, weights))

    def build(self, shape: Shape) -> None:
        """Check the widths against the model's, or take those that it suggests."""
        halves = (shape.embed_dim >> k for k in range(shape.embed_dim.bit_length()))
        self.widths = self.widths or tuple(takewhile(lambda w: w >= min(_NARROWEST, shape.embed_dim), halves))
        if max(self.widths) > shape.embed_dim:
            raise InputError(
                f"matryoshka: width {max(self.widths)} is more than the {shape.embed_dim} of the model's embedding; "
                "ask for less or give the model another embed_dim"
            )
        self.width_weights = self.width_weights or (1.0,) * len(self.widths)
        if len(self.width_weights) != len(self.widths):
            raise InputError(
                f"matryoshka: there are {len(self.widths)} widths {list(self.widths)} and {len(self.width_weights)} weights; give each one"
            )

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return a term for each width."""
        terms = {}
        for width, weight in zip(self.widths, self.width_weights, strict=True):
            if weight:
                to_texts = cross_entropies(outputs, _cut(outputs[View()], width), _cut(outputs.all(Text()), width))
                to_images = cross_entropies(outputs, _cut(outputs[Text()], width), _cut(outputs.all(View()), width))
                terms[f"matryoshka_{width}"] = weight * (to_texts.mean() + to_images.mean()) / 2
        return terms


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cut(features: torch.Tensor, width: int) -> torch.Tensor:
    # All of a unit vector is one already.
    return features if width == features.shape[1] else functional.normalize(features[:, :width], dim=-1)
