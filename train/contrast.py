"""What the contrastive losses share: cross-entropies of own rows among the whole batch, with samples that have nothing to compare left out."""

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.loss import Outputs
from train.request import Request, Text, View


def cross_entropies(
    outputs: Outputs, rows: torch.Tensor, columns: torch.Tensor, present: torch.Tensor | None = None
) -> torch.Tensor:
    """Return each own row's cross-entropy among `columns` of the whole batch, its positive at the place of its sample: (n,).

    Columns that are not `present` (N,) are no negatives; a row's own column counts in any case. Columns past the batch's are further
    negatives.
    """
    logits = outputs.logit_scale * rows @ columns.T
    own = outputs.own_rows
    if present is not None:
        is_own = torch.arange(len(columns), device=own.device) == own[:, None]
        logits = logits.masked_fill(~present & ~is_own, -torch.inf)
    return functional.cross_entropy(logits, own, reduction="none")


def pair_losses(
    outputs: Outputs, image: Request | None = None, text: Request | None = None, present: torch.Tensor | None = None
) -> torch.Tensor:
    """Return InfoNCE of each own sample, the mean of both directions (n,); `present` (N,) says who takes part."""
    image, text = image or View(), text or Text()
    to_texts = cross_entropies(outputs, outputs[image], outputs.all(text), present)
    to_images = cross_entropies(outputs, outputs[text], outputs.all(image), present)
    return (to_texts + to_images) / 2


def gather_groups(outputs: Outputs, groups: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the images and texts of all groups that this process has samples of, and where in the whole batch the first of them lies.

    Group i is the i-th of `groups` equal parts of the batch. Where those of one group lie on whole processes, only these exchange them; where
    every group lies on one process, nobody does.
    """
    world = outputs.world
    if outputs.num_rows * world.size % groups:
        raise InputError(f"a batch of {outputs.num_rows * world.size} does not divide into {groups} groups")
    if groups % world.size == 0:
        return outputs[View()], outputs[Text()], world.rank * outputs.num_rows
    if groups == 1 or world.size % groups:
        return outputs.all(View()), outputs.all(Text()), 0
    images, texts = (world.gather(outputs[request], groups) for request in (View(), Text()))
    return images, texts, world.rank * outputs.num_rows // len(images) * len(images)


def logits_both_ways(outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of own images among all texts and of own texts among all images, (n, N) each."""
    image_logits = outputs.logit_scale * outputs[View()] @ outputs.all(Text()).T
    text_logits = outputs.logit_scale * outputs[Text()] @ outputs.all(View()).T
    return image_logits, text_logits


def soft_cross_entropy(logits: tuple[torch.Tensor, ...], targets: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the mean over rows and directions of the cross-entropy with targets that add up to 1 in each row."""
    parts = [-(target * part.log_softmax(1)).sum(1).mean() for part, target in zip(logits, targets, strict=True)]
    return torch.stack(parts).mean()


def own_share(present: torch.Tensor, all_present: torch.Tensor) -> torch.Tensor:
    """Return weights (n,) with which a mean over own rows, averaged over the processes, is the mean over the samples that are present."""
    return present.float() / all_present.float().mean().clamp_min(1 / len(all_present))
