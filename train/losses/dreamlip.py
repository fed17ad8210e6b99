"""Sentences of long captions as several positives, DreamLIP (Zheng et al. 2024, arXiv 2403.17007)."""

import torch
from torch import nn
from torch.nn import functional

from schemas.errors import InputError
from train.contrast import own_share, pair_losses
from train.loss import Loss, Outputs
from train.request import Patches, Present, Shape, Text, View

# By which the authors divide the circle loss.
_CIRCLE_SCALE = 10.0


class DreamLIP(Loss):
    """InfoNCE with the drawn text, a loss with `count` sub-captions as positives of one image, and one of sub-captions with patches.

    `columns` are caption columns, such as the lists of `sub_captions`. `positives` is `circle`, the authors' circle loss (arXiv 2002.10857)
    over all sub-captions of the batch, or `info_nce`, the mean of InfoNCE over an image's sub-captions. For the third, each sub-caption
    gathers the image's patches by their similarity, stretched to 0 to 1 over the patches and cut below `least`, and finds its own
    gathering among those of the batch. InfoNCE counts as one of the count + 1 texts.

    Otherwise than in the authors' code, the drawn text is neither among the positives of the circle nor does it gather patches.
    """

    def __init__(
        self,
        *,
        columns: tuple[str, ...] = ("sub_captions",),
        count: int = 6,
        positives: str = "circle",
        margin: float = 0.25,
        gamma: float = 32.0,
        least: float = 0.0,
        grouping: float = 1.0,
    ) -> None:
        if positives not in {"circle", "info_nce"}:
            raise InputError(f"dreamlip: positives is circle or info_nce, got {positives!r}")
        if count < 2:
            raise InputError(f"dreamlip: count must be at least 2, got {count}; for one text more use multi_text")
        texts = Text(columns=columns, count=count)
        super().__init__((View(), Text(), texts, Present(texts), *((Patches(),) if grouping else ())))
        self.texts = texts
        self.positives = positives
        self.margin = margin
        self.gamma = gamma
        self.least = least
        self.grouping = grouping

    def build(self, shape: Shape) -> None:
        """Make the map of patches into the common space."""
        if self.grouping:
            self.patch_map = nn.Linear(shape.image_width, shape.embed_dim)

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the three parts."""
        positives = self._circle(outputs) if self.positives == "circle" else self._info_nce(outputs)
        terms = {
            "dreamlip_text": pair_losses(outputs).mean() / (self.texts.count + 1),
            "dreamlip_positives": positives,
        }
        if self.grouping:
            terms["dreamlip_grouping"] = self.grouping * self._group(outputs)
        return terms

    def _own(self, outputs: Outputs) -> torch.Tensor:
        """Return which of the batch's sub-captions (N x count) belong to each own image."""
        owners = torch.arange(len(outputs.all(self.texts)), device=outputs.logit_scale.device)
        return outputs.own_rows[:, None] == owners.repeat_interleave(self.texts.count)

    def _circle(self, outputs: Outputs) -> torch.Tensor:
        present = outputs.all(Present(self.texts))
        cosines = outputs[View()] @ outputs.all(self.texts).flatten(0, 1).T
        own = self._own(outputs)
        is_positive, is_negative = own & present.flatten(), ~own & present.flatten()
        with torch.no_grad():
            pull = (1 + self.margin - cosines).clamp_min(0)
            push = (cosines + self.margin).clamp_min(0)
        positive = (-self.gamma * pull * (cosines - 1 + self.margin)).masked_fill(~is_positive, -torch.inf).logsumexp(1)
        negative = (self.gamma * push * (cosines - self.margin)).masked_fill(~is_negative, -torch.inf).logsumexp(1)
        takes_part, all_take_part = outputs[Present(self.texts)].any(1), present.any(1)
        losses = functional.softplus(torch.where(takes_part, positive + negative, -torch.inf)) / _CIRCLE_SCALE
        return (own_share(takes_part, all_take_part) * losses).mean()

    def _info_nce(self, outputs: Outputs) -> torch.Tensor:
        """Return the mean over sub-captions of both directions; an image's other sub-captions are no negatives."""
        present, all_present = outputs[Present(self.texts)], outputs.all(Present(self.texts))
        own, count = self._own(outputs), self.texts.count
        logits = outputs.logit_scale * outputs[View()] @ outputs.all(self.texts).flatten(0, 1).T
        negatives = logits.masked_fill(own | ~all_present.flatten(), -torch.inf).logsumexp(1, keepdim=True)
        mine = logits[own].reshape(-1, count)
        to_texts = torch.logaddexp(mine, negatives) - mine
        image_logits = outputs.logit_scale * outputs[self.texts] @ outputs.all(View()).T
        to_images = functional.cross_entropy(
            image_logits.flatten(0, 1), outputs.own_rows.repeat_interleave(count), reduction="none"
        ).reshape(-1, count)
        return _mean_of_present(to_texts + to_images, present, all_present) / 2

    def _group(self, outputs: Outputs) -> torch.Tensor:
        present, all_present = outputs[Present(self.texts)], outputs.all(Present(self.texts))
        patches = functional.normalize(self.patch_map(outputs[Patches()]), dim=-1)
        groups = group_patches(patches, outputs[self.texts], self.least)
        every_group, every_text = outputs.world.gather(groups).flatten(0, 1), outputs.all(self.texts).flatten(0, 1)
        count = self.texts.count
        own = (outputs.own_rows[:, None] * count + torch.arange(count, device=groups.device)).flatten()
        is_own = own[:, None] == torch.arange(len(every_text), device=own.device)
        losses = []
        for rows, columns in ((groups, every_text), (outputs[self.texts], every_group)):
            logits = outputs.logit_scale * rows.flatten(0, 1) @ columns.T
            logits = logits.masked_fill(~all_present.flatten() & ~is_own, -torch.inf)
            losses.append(functional.cross_entropy(logits, own, reduction="none").reshape(-1, count))
        return _mean_of_present(losses[0] + losses[1], present, all_present) / 2


def group_patches(patches: torch.Tensor, texts: torch.Tensor, least: float) -> torch.Tensor:
    """Return for texts (n, k, d) the unit sum (n, k, d) of the sample's patches (n, p, d) that are similar to each.

    Similarities are stretched to 0 to 1 over the patches; those below `least` count as 0. A negative `least` means 1 / p.
    """
    similarity = torch.einsum("nkd,npd->nkp", texts, patches)
    low, high = similarity.amin(2, keepdim=True), similarity.amax(2, keepdim=True)
    weights = (similarity - low) / (high - low).clamp_min(1e-6)
    weights = torch.where(weights < (least if least >= 0 else 1 / patches.shape[1]), 0.0, weights)
    weights = weights / weights.sum(2, keepdim=True).clamp_min(1e-6)
    return functional.normalize(weights @ patches, dim=-1)


def _mean_of_present(losses: torch.Tensor, present: torch.Tensor, all_present: torch.Tensor) -> torch.Tensor:
    share = all_present.float().mean().clamp_min(1 / all_present.numel())
    return torch.where(present, losses, 0.0).mean() / share
