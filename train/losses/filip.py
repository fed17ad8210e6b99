"""Token-wise late interaction, FILIP (Yao et al. 2021, arXiv 2111.07783)."""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.loss import Loss, Outputs
from train.request import Ids, Patches, Shape, Tokens

_SCALE_MAX = 100.0


class FILIP(Loss):
    """InfoNCE of token-wise similarities: each image token's best text token, averaged, and the reverse for texts.

    Tokens pass linear maps to `width` channels. Of each side the `num_tokens` that answer best to the own pair's other side are kept,
    which bounds both the exchange between processes and the memory; computed `chunk` samples of the batch at a time. The factor on
    similarities is the loss's own. A ViT's class token is not among its tokens.
    """

    def __init__(self, *, width: int = 256, num_tokens: int = 16, chunk: int = 64) -> None:
        super().__init__((Patches(), Tokens(), Ids()))
        self.width = width
        self.num_tokens = num_tokens
        self.chunk = chunk
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def build(self, shape: Shape) -> None:
        """Make the linear maps."""
        self.image_map = nn.Linear(shape.image_width, self.width)
        self.text_map = nn.Linear(shape.text_width, self.width)

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        images = functional.normalize(self.image_map(outputs[Patches()]), dim=-1)
        texts = functional.normalize(self.text_map(outputs[Tokens()]), dim=-1)
        is_image = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        image_part = self._keep_best(images, is_image, texts, outputs[Ids()] >= 0)
        text_part = self._keep_best(texts, outputs[Ids()] >= 0, images, is_image)
        scale, own = self.log_scale.exp().clamp_max(_SCALE_MAX), outputs.own_rows
        image_logits = scale * self._compare(image_part, tuple(map(outputs.world.gather, text_part)))
        text_logits = scale * self._compare(text_part, tuple(map(outputs.world.gather, image_part)))
        return {"filip": (functional.cross_entropy(image_logits, own) + functional.cross_entropy(text_logits, own)) / 2}

    def _keep_best(
        self, tokens: torch.Tensor, valid: torch.Tensor, others: torch.Tensor, others_valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `num_tokens` tokens of each sample (n, k, width), and which of them there are (n, k)."""
        if tokens.shape[1] < self.num_tokens:
            missing = self.num_tokens - tokens.shape[1]
            return functional.pad(tokens, (0, 0, 0, missing)), functional.pad(valid, (0, missing))
        with torch.no_grad():
            answers = (tokens @ others.transpose(1, 2)).masked_fill(~others_valid[:, None], -torch.inf).amax(2)
            best = answers.masked_fill(~valid, -torch.inf).topk(self.num_tokens, dim=1).indices
        return tokens.take_along_dim(best[..., None], 1), valid.take_along_dim(best, 1)

    def _compare(self, rows: tuple[torch.Tensor, torch.Tensor], columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return token-wise similarities (n, N): the mean over a row's tokens of the best among a column's."""
        parts = [
            checkpoint(late_interaction, *rows, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*(torch.split(value, self.chunk) for value in columns), strict=True)
        ]
        return torch.cat(parts, dim=1)


def late_interaction(
    tokens: torch.Tensor, valid: torch.Tensor, others: torch.Tensor, others_valid: torch.Tensor
) -> torch.Tensor:
    """Return for samples (n, k, d) and others (m, l, d) the mean over valid tokens of their best similarity to a valid other: (n, m)."""
    products = torch.einsum("nkd,mld->nmkl", tokens, others).masked_fill(~others_valid[None, :, None], -torch.inf)
    best = products.amax(3).masked_fill(~valid[:, None], 0.0)
    return best.sum(2) / valid.sum(1, keepdim=True).clamp_min(1)
