"""Layers that losses add to the towers; what they normalise over is the whole batch, however many processes share it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.distributed import World

_EPS = 1e-5


class BatchNorm(nn.Module):
    """Normalises each channel over the rows of all processes (as many on each); keeps no running means, because it only trains."""

    def __init__(self, width: int, *, is_affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if is_affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if is_affine else None

    def forward(self, rows: torch.Tensor, world: World) -> torch.Tensor:
        """Return normalised rows (n, width)."""
        centred = rows - world.gather(rows.mean(0, keepdim=True)).mean(0)
        variance = world.gather(centred.square().mean(0, keepdim=True)).mean(0)
        normalised = centred * torch.rsqrt(variance + _EPS)
        return normalised if self.weight is None or self.bias is None else normalised * self.weight + self.bias


class Projector(nn.Module):
    """Linear layers with batch normalisation and ReLU between them; `is_last_normalised` adds one without scale and shift at the end."""

    def __init__(self, widths: Sequence[int], *, is_last_normalised: bool = False) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in pairs])
        norms = [BatchNorm(width) for _, width in pairs[:-1]]
        self.norms = nn.ModuleList([*norms, BatchNorm(widths[-1], is_affine=False)] if is_last_normalised else norms)

    def forward(self, rows: torch.Tensor, world: World) -> torch.Tensor:
        """Return projected rows (n, last width)."""
        for number, layer in enumerate(self.layers):
            rows = layer(rows)
            if number < len(self.norms):
                rows = self.norms[number](rows, world)
            if number < len(self.layers) - 1:
                rows = functional.relu(rows)
        return rows


def num_heads(width: int) -> int:
    """Return the heads of an attention of this width: of 64 channels each where that divides it, else one."""
    return width // 64 if width % 64 == 0 else 1


def sum_token_losses(
    layer: nn.Linear, tokens: torch.Tensor, ids: torch.Tensor, chunk: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the cross-entropies of the ids (m,) among `layer`'s outputs for the tokens (m, width), added up, in float32; `weights` (m,) weigh them.

    Outputs over a vocabulary are the largest tensors of a step. So they are computed `chunk` tokens at a time, and once more on the way
    back where there are more: memory is chunk x vocabulary however many tokens there are.
    """
    given = (tokens, ids) if weights is None else (tokens, ids, weights)
    if len(tokens) <= chunk:
        return _sum_token_losses(layer, *given)
    total = tokens.new_zeros((), dtype=torch.float32)
    for part in zip(*(torch.split(values, chunk) for values in given), strict=True):
        total = total + checkpoint(_sum_token_losses, layer, *part, use_reentrant=False, preserve_rng_state=False)
    return total


def _sum_token_losses(
    layer: nn.Linear, tokens: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    logits = layer(tokens).float()
    if weights is None:
        return functional.cross_entropy(logits, ids, reduction="sum")
    return weights @ functional.cross_entropy(logits, ids, reduction="none")
