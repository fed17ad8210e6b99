"""The contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

import math

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.contrast import gather_groups
from train.loss import Loss, Outputs
from train.request import Text, View


class InfoNCE(Loss):
    """Cross-entropy of each image among all texts of the batch and of each text among all images, averaged.

    `image_weight` and `text_weight` are how much the two count, relative to each other; equal ones are CLIP, 0.75 and 0.25 ConVIRT
    (Zhang et al. 2020, arXiv 2010.00747). `local_loss` has each process classify its own rows only (memory n x N instead of N x N); value
    and gradients are the same.

    `focal` above 0 lets pairs that are told apart already count less: a row whose match has probability p counts (1 - p) ** focal times, the
    focal form (Lin et al. 2017, arXiv 1708.02002) that Park and Han give the contrast (2023, arXiv 2304.00719); 0 is CLIP.

    `groups` above 1 contrasts within parts of the batch, M2-Encoder's grouped aggregation (Guo et al. 2024, arXiv 2401.15896): the first
    `1 / groups` of the batch is one group, and so on, so that value and gradients are the same however many processes share it. Where the
    processes divide into the groups, or the groups into the processes, features travel within a group only; otherwise everywhere. Of the
    last two papers the abstracts were read.
    """

    def __init__(
        self,
        *,
        local_loss: bool = True,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        focal: float = 0.0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if min(image_weight, text_weight) < 0 or not image_weight + text_weight:
            raise InputError(
                "info_nce: image_weight and text_weight must be 0 or more, and one of them above, "
                f"got {image_weight} and {text_weight}"
            )
        if not 0 <= focal < math.inf or groups < 1:
            raise InputError(f"info_nce: focal must be 0 or more and groups at least 1, got {focal} and {groups}")
        self.local_loss = local_loss
        self.image_weight = image_weight
        self.text_weight = text_weight
        self.focal = focal
        self.batch_parts = groups

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        images, texts, first = gather_groups(outputs, self.batch_parts)
        own_images, own_texts, start = images, texts, 0
        if self.local_loss:
            own_images, own_texts = outputs[View()], outputs[Text()]
            start = outputs.world.rank * outputs.num_rows - first
        if self.batch_parts == 1:
            # Without slices, whose gradients would be added up in another order: runs keep their bits.
            whole = self._contrast(outputs.logit_scale, own_images, own_texts, images, texts, start)
            return {"info_nce": whole}
        length = outputs.num_rows * outputs.world.size // self.batch_parts
        total = outputs.logit_scale.new_zeros(())
        for place in range(start // length * length, start + len(own_images), length):
            rows = slice(max(place - start, 0), place + length - start)
            columns = slice(place, place + length)
            part = self._contrast(
                outputs.logit_scale,
                own_images[rows],
                own_texts[rows],
                images[columns],
                texts[columns],
                start + rows.start - place,
            )
            total = total + part * (len(own_images[rows]) / len(own_images))
        return {"info_nce": total}

    def _contrast(
        self,
        logit_scale: torch.Tensor,
        own_images: torch.Tensor,
        own_texts: torch.Tensor,
        images: torch.Tensor,
        texts: torch.Tensor,
        start: int,
    ) -> torch.Tensor:
        """Return the loss of some rows among a group; the first of them is the group's `start`-th."""
        image_logits = logit_scale * own_images @ texts.T
        # Of a whole group the one is the other from the other side.
        is_whole = len(own_images) == len(images) and not self.local_loss
        text_logits = image_logits.T if is_whole else logit_scale * own_texts @ images.T
        own = torch.arange(start, start + len(own_images), device=images.device)
        to_texts = self.image_weight * self._classify(image_logits, own)
        to_images = self.text_weight * self._classify(text_logits, own)
        return (to_texts + to_images) / (self.image_weight + self.text_weight)

    def _classify(self, logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        if not self.focal:
            return functional.cross_entropy(logits, own)
        losses = functional.cross_entropy(logits, own, reduction="none")
        # 1 - p, exact for small losses too; where it is 0, its powers below 1 have no slope that is a number.
        missing = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
        return (missing**self.focal * losses).mean()
