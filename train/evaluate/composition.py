"""Compositional understanding: does an image agree more with its caption than with wrong captions made of it?

The protocol of ARO (Yuksekgonul et al., 2023) and SugarCrepe (Hsieh et al., 2023). A model that reads captions as bags of words cannot do
better than guess where only the order is wrong. Ties count against the model.
"""

from collections.abc import Callable, Mapping, Sequence

import torch


def measure_composition(
    image_features: torch.Tensor,
    encode_text: Callable[[Sequence[str]], torch.Tensor],
    captions: Sequence[str],
    negatives: Sequence[Mapping[str, Sequence[str]]],
) -> dict[str, float]:
    """Return for each kind of negatives the share of images whose caption scores higher than all its negatives, and what guessing scores.

    `image_features` are unit vectors, one per image; `encode_text` returns one per text. Each text is encoded once.
    """
    numbers: dict[str, int] = {}
    for caption, own in zip(captions, negatives, strict=True):
        for text in (caption, *(text for texts in own.values() for text in texts)):
            numbers.setdefault(text, len(numbers))
    features = encode_text(list(numbers)).to(image_features.device)
    hits: dict[str, list[bool]] = {}
    chances: dict[str, list[float]] = {}
    for row, (caption, own) in enumerate(zip(captions, negatives, strict=True)):
        for kind, texts in own.items():
            if not texts:
                continue
            scores = features[[numbers[caption], *(numbers[text] for text in texts)]] @ image_features[row]
            hits.setdefault(kind, []).append(bool((scores[1:] < scores[0]).all()))
            chances.setdefault(kind, []).append(1 / (1 + len(texts)))
    metrics: dict[str, float] = {}
    for kind in sorted(hits):
        metrics[f"composition_{kind}"] = sum(hits[kind]) / len(hits[kind])
        metrics[f"chance_composition_{kind}"] = sum(chances[kind]) / len(chances[kind])
        metrics[f"num_composition_{kind}"] = float(len(hits[kind]))
    return metrics


def composition_means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the means over the kinds of negatives, of all tasks of a dataset; nothing where there are none."""
    kinds = [name.removeprefix("num_") for name in metrics if name.startswith("num_composition_")]
    if not kinds:
        return {}
    return {
        f"{prefix}composition_mean": sum(metrics[f"{prefix}{kind}"] for kind in kinds) / len(kinds)
        for prefix in ("", "chance_")
    }
