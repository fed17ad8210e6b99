"""What the features of images and texts look like as sets of points on the sphere.

Modality gap: the distance between the mean image and the mean text (Liang et al., 2022). Alignment: the mean squared distance of matching
pairs; uniformity: the logarithm of the mean of exp(-2 d^2) over different points (Wang and Isola, 2020), 0 where all are one point, lower the more evenly
they lie. Effective rank: the exponential of the entropy of the singular values, 1 to d (Roy and Vetterli, 2007).
"""

from collections.abc import Sequence

import numpy as np
import torch

# Uniformity is a mean over pairs: this many points, evenly spaced, are enough and bound its cost.
MAX_POINTS = 16_384
_CHUNK = 2_048


def measure_embedding(
    image_features: torch.Tensor, text_features: torch.Tensor, texts_of_image: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Return the measures of unit image features (n, d) and text features (m, d); image i matches the texts `texts_of_image[i]`."""
    images, texts = image_features.double(), text_features.double()
    rows = np.repeat(np.arange(len(texts_of_image)), [len(own) for own in texts_of_image])
    columns = [text for own in texts_of_image for text in own]
    distances = (images[torch.from_numpy(rows)] - texts[torch.tensor(columns, dtype=torch.long)]).square().sum(dim=1)
    return {
        "modality_gap": float((images.mean(dim=0) - texts.mean(dim=0)).norm()),
        "alignment": float(distances.mean()),
        "image_uniformity": measure_uniformity(images),
        "text_uniformity": measure_uniformity(texts),
        "image_effective_rank": measure_effective_rank(images),
        "text_effective_rank": measure_effective_rank(texts),
    }


def measure_uniformity(features: torch.Tensor) -> float:
    """Return the uniformity of unit vectors (n, d); 0 where there is but one."""
    if len(features) > MAX_POINTS:
        features = features[torch.linspace(0, len(features) - 1, MAX_POINTS).long()]
    count = len(features)
    if count < 2:
        return 0.0
    total = 0.0
    for start in range(0, count, _CHUNK):
        # On the sphere the squared distance is 2 - 2 cos.
        total += float((4 * (features[start : start + _CHUNK] @ features.T) - 4).exp().sum())
    # A point's distance to itself is 0, whose exponential is 1.
    return float(np.log((total - count) / (count * (count - 1))))


def measure_effective_rank(features: torch.Tensor) -> float:
    """Return the effective rank of features (n, d), 1 to min(n, d)."""
    squares = torch.linalg.eigvalsh(features.T @ features).clamp(min=0)
    values = squares.sqrt()
    shares = values / values.sum()
    entropy = -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum()
    return float(entropy.exp())
