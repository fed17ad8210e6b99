"""Long and short texts of one picture, Long-CLIP (Zhang et al. 2024, arXiv 2403.15378)."""

from typing import Any

import torch

from schemas.errors import InputError
from train.contrast import own_share
from train.loss import Loss, Outputs
from train.request import Present, Text, View

# Of the largest variance: two directions that differ by less are one, and there is no saying which of them was left out.
_LEAST_GAP = 1e-10


class LongCLIP(Loss):
    """InfoNCE of the images with the drawn, long texts, and of what is coarse in the images with the short ones in the column `short`.

    Coarse is what the first `components` principal components of the batch's image features hold; the rest of a picture, which a short
    text does not tell, is taken out, and lengths are left as they are. The components are those of the whole batch; the authors' are
    of each GPU's share. Targets are smoothed by `smoothing`, the short texts' term counts `short_weight`. A sample without a short text
    takes no part in it. To be used with `towers.context_length: 248`.
    """

    def __init__(
        self,
        *,
        short: str = "alt_text",
        components: int = 32,
        smoothing: float = 0.1,
        short_weight: float = 1.0,
    ) -> None:
        if components < 1 or not 0 <= smoothing < 1:
            raise InputError(
                f"longclip: components must be at least 1 and smoothing in [0, 1), got {components} and {smoothing}"
            )
        text = Text(columns=(short,))
        super().__init__((View(), Text(), text, Present(text)))
        self.short = text
        self.components = components
        self.smoothing = smoothing
        self.short_weight = short_weight

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the terms of the long and of the short texts."""
        present = outputs.all(Present(self.short))
        images = outputs.all(View())
        coarse = reduce_features(images, self.components)
        share = own_share(outputs[Present(self.short)], present)
        long = self._both_ways(outputs, images, Text(), torch.ones_like(present))
        short = self._both_ways(outputs, coarse, self.short, present)
        return {"longclip_long": long.mean(), "longclip_short": self.short_weight * (share * short).mean()}

    def _both_ways(self, outputs: Outputs, images: torch.Tensor, text: Text, present: torch.Tensor) -> torch.Tensor:
        """Return the mean of both directions for each own sample (n,)."""
        own = outputs.own_rows
        to_texts = self._cross_entropies(outputs, images[own], outputs.all(text), present)
        to_images = self._cross_entropies(outputs, outputs[text], images, present)
        return (to_texts + to_images) / 2

    def _cross_entropies(
        self, outputs: Outputs, rows: torch.Tensor, columns: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        own = outputs.own_rows
        is_own = torch.arange(len(columns), device=own.device) == own[:, None]
        is_absent = ~present & ~is_own
        logits = (outputs.logit_scale * rows @ columns.T).masked_fill(is_absent, -torch.inf)
        losses = -logits.log_softmax(1)
        everywhere = losses.masked_fill(is_absent, 0).sum(1) / (~is_absent).sum(1)
        return (1 - self.smoothing) * losses[is_own] + self.smoothing * everywhere


def reduce_features(features: torch.Tensor, components: int) -> torch.Tensor:
    """Return features (n, d) without what lies outside their first principal components, counted from their mean."""
    if components >= min(len(features) - 1, features.shape[1]):
        return features
    reduced: torch.Tensor = _Reduce.apply(features, components)  # type: ignore[no-untyped-call]
    return reduced


class _Reduce(torch.autograd.Function):
    """The projection with its derivative in closed form.

    Through an eigendecomposition it would have every pair of directions' difference in a denominator; that of the projection has only
    pairs of a direction that is kept and one that is not.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, components: int) -> torch.Tensor:
        mean = features.mean(0)
        centred = features - mean
        # In double: squares of singular values are compared.
        variances, directions = torch.linalg.eigh(centred.double().T @ centred.double())
        ctx.save_for_backward(centred, variances, directions)
        ctx.components = components
        kept = directions[:, -components:].to(features.dtype)
        reduced: torch.Tensor = mean + centred @ kept @ kept.T
        return reduced

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        centred, variances, directions = ctx.saved_tensors
        left, kept = directions[:, : -ctx.components], directions[:, -ctx.components :]
        centred, wide = centred.double(), gradient.double()
        product = wide.T @ centred
        gaps = variances[-ctx.components :] - variances[: -ctx.components, None]
        turned = left.T @ (product + product.T) @ kept
        turned = torch.where(gaps > _LEAST_GAP * variances[-1], turned / gaps, 0.0)
        turn = left @ turned @ kept.T
        found = wide @ kept @ kept.T + centred @ (turn + turn.T)
        found = found - found.mean(0) + wide.mean(0)
        return found.to(gradient.dtype), None
