"""Sparse fine-grained alignment of words with patches, SPARC (Bica et al. 2024, arXiv 2401.09865), to be added to a contrastive loss."""

import torch
from torch import nn
from torch.nn import functional

from train.loss import Loss, Outputs
from train.losses.dreamlip import group_patches
from train.request import Ids, Patches, Shape, Tokens


class SPARC(Loss):
    """Each token of a text gathers its own picture's patches, and finds its gathering among those of its own text, and the reverse.

    A patch's weight is its similarity to the token, stretched to 0 to 1 over the patches, cut below `least` (-1: one over the number of
    patches, the authors') and made to add up to 1. Tokens and patches pass a linear map each; the factor on cosines is the model's.
    No other sample takes part, so memory grows with the batch, not with its square. The mean over a text's tokens, begin and end marks
    included and padding left out, then over samples. The authors' weights are `{info_nce: 0.5, sparc: W}` with W 0.5, 1, 5 or 10.
    """

    def __init__(self, *, least: float = -1.0) -> None:
        super().__init__((Patches(), Tokens(), Ids()))
        self.least = least

    def build(self, shape: Shape) -> None:
        """Make the linear maps into a space as wide as the model's."""
        self.patch_map = nn.Linear(shape.image_width, shape.embed_dim)
        self.token_map = nn.Linear(shape.text_width, shape.embed_dim)

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        tokens, is_token = self.token_map(outputs[Tokens()]), outputs[Ids()] >= 0
        groups = group_patches(self.patch_map(outputs[Patches()]), tokens, self.least)
        losses = contrast_within(functional.normalize(tokens, dim=-1), groups, is_token, outputs.logit_scale)
        return {"sparc": losses.mean()}


def contrast_within(
    tokens: torch.Tensor, groups: torch.Tensor, is_token: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return for unit tokens and gatherings (n, l, d) the mean of both directions' InfoNCE among a sample's own tokens: (n,)."""
    logits = scale * tokens @ groups.transpose(1, 2)
    # Padding is no negative, and its own rows, which are no numbers, are left out below.
    is_absent = ~is_token[:, None]
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    to_groups, to_tokens = (
        functional.cross_entropy(part.masked_fill(is_absent, -torch.inf).transpose(1, 2), places, reduction="none")
        for part in (logits, logits.transpose(1, 2))
    )
    return torch.where(is_token, to_groups + to_tokens, 0.0).sum(1) / (2 * is_token.sum(1).clamp_min(1))
