"""Zero-shot classification with an ensemble of prompts (Radford et al., 2021).

Every class name is put into every template; a class is the normalised mean of its normalised prompt features. Ties count against the model.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from schemas.errors import InputError
from train.evaluate.group import split_by_group
from train.evaluate.task import Groups

# What to say where nothing else is known; CLIP_benchmark folders bring their own.
DEFAULT_TEMPLATES = ("a photo of a {c}.",)

_PLACES = ("{c}", "{classname}", "{}")


def fill_templates(classnames: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the prompts of the first class in template order, then those of the second, and so on."""
    for template in templates:
        if not any(place in template for place in _PLACES):
            raise InputError(f"template {template!r} has no place for the class name; write it as {{c}}")
    return [_fill(template, name) for name in classnames for template in templates]


def encode_classes(
    encode_text: Callable[[Sequence[str]], torch.Tensor], classnames: Sequence[str], templates: Sequence[str]
) -> torch.Tensor:
    """Return one unit vector per class; `encode_text` returns one unit vector per text."""
    features = encode_text(fill_templates(classnames, templates)).reshape(len(classnames), len(templates), -1)
    return torch.nn.functional.normalize(features.mean(dim=1), dim=-1)


def classify(
    image_features: torch.Tensor, class_features: torch.Tensor, labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each image the rank of its own class (0 is first place) and the class it is taken for, -1 where none scores highest."""
    scores = image_features @ class_features.T
    own = torch.from_numpy(labels).to(scores.device)[:, None]
    not_lower = ~(scores < scores.gather(1, own))
    ranks = (not_lower.scatter(1, own, value=False)).sum(dim=1).cpu().numpy()
    best = scores.max(dim=1, keepdim=True)
    is_alone = (scores >= best.values).sum(dim=1) == 1
    predictions = torch.where(is_alone, best.indices[:, 0], -1).cpu().numpy()
    return ranks, predictions


def measure_zeroshot(
    image_features: torch.Tensor,
    class_features: torch.Tensor,
    labels: npt.NDArray[np.int64],
    groups: Sequence[Groups] = (),
) -> dict[str, float]:
    """Return acc1, acc5, the mean over classes of their recall (acc1 within the class) and of their F1, and what guessing scores.

    Classes without an image do not enter the means. For each of `groups` follow acc1 and acc5 within each group and in the worst.
    """
    ranks, predictions = classify(image_features, class_features, labels)
    num_classes = len(class_features)
    hits = np.bincount(labels, weights=ranks == 0, minlength=num_classes)
    totals = np.bincount(labels, minlength=num_classes)
    guessed = np.bincount(predictions[predictions >= 0], minlength=num_classes)
    seen = totals > 0
    metrics = {
        "acc1": float((ranks < 1).mean()),
        "acc5": float((ranks < 5).mean()),
        "mean_per_class_recall": float((hits[seen] / totals[seen]).mean()),
        "macro_f1": float((2 * hits[seen] / (totals[seen] + guessed[seen])).mean()),
        "chance_acc1": 1 / num_classes,
        "chance_acc5": min(5, num_classes) / num_classes,
        "chance_mean_per_class_recall": 1 / num_classes,
        "num_labelled_images": float(len(labels)),
        "num_classes": float(num_classes),
    }
    for group in groups:
        metrics |= split_by_group(group.name, group.values, {"acc1": ranks < 1, "acc5": ranks < 5})
    return metrics


def _fill(template: str, name: str) -> str:
    for place in _PLACES:
        template = template.replace(place, name)
    return template
