"""Few-shot classification that starts from the zero-shot classifier, as DiHT does (Radenovic et al., 2023, arXiv 2301.02280).

To the class vectors of the prompts a change is added, and a bias, which a few images teach by projected gradient descent under bounds on the
norms of both; without them training on one image of each class would forget what the prompts say. The bounds are chosen from a grid on one
image of each class that is held back; where there is but one, the smallest are taken.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from train.evaluate.probe import Classifier, draw_shots

# The paper does not give its grid.
RADII = (0.1, 0.3, 1.0, 3.0)  # of the change, all classes together; class vectors have length 1
BIAS_RADII = (0.0, 1.0, 3.0)  # in units of logits
LOGIT_SCALE = 100.0  # CLIP's largest
_NUM_STEPS = 100


def fit_near(
    features: torch.Tensor,
    labels: npt.NDArray[np.int64],
    class_features: torch.Tensor,
    *,
    radius: float,
    bias_radius: float,
) -> Classifier:
    """Return a classifier no further from the zero-shot one than the radii allow; with both 0 it is the zero-shot classifier."""
    rows, start = features.double(), class_features.double().to(features.device)
    wanted = torch.nn.functional.one_hot(torch.from_numpy(labels).to(rows.device), len(start)).double()
    change = torch.zeros_like(start)
    bias = torch.zeros(len(start), dtype=rows.dtype, device=rows.device)
    for step in range(_NUM_STEPS):
        shares = torch.softmax(LOGIT_SCALE * rows @ (start + change).T + bias, dim=1)
        error = (shares - wanted) / len(rows)
        size = 1 / (1 + step) ** 0.5
        change = _step(change, error.T @ rows, size, radius)
        bias = _step(bias, error.sum(dim=0), size, bias_radius)
    return Classifier(LOGIT_SCALE * (start + change), bias)


def measure_near_shots(
    features: torch.Tensor,
    labels: npt.NDArray[np.int64],
    test_features: torch.Tensor,
    test_labels: npt.NDArray[np.int64],
    class_features: torch.Tensor,
    *,
    shots: Sequence[int],
    num_seeds: int,
) -> dict[str, float]:
    """Return for each number of shots the mean accuracy over draws of the training images, and its standard deviation.

    All features are unit vectors of the space that images and texts share. The draws are those of `measure_few_shot`.
    """
    metrics: dict[str, float] = {}
    for count in shots:
        accuracies = []
        for seed in range(num_seeds):
            rows = draw_shots(labels, count, seed)
            radius, bias_radius = _choose_radii(features, labels, class_features, rows)
            fitted = fit_near(features[rows], labels[rows], class_features, radius=radius, bias_radius=bias_radius)
            accuracies.append(float((fitted.predict(test_features) == test_labels).mean()))
        name = f"zero_shot_start_{count}_acc1"
        metrics[name] = float(np.mean(accuracies))
        metrics[f"chance_{name}"] = 1 / len(class_features)
        metrics[f"{name}_std"] = float(np.std(accuracies, ddof=1)) if num_seeds > 1 else 0.0
    return metrics


def _step(value: torch.Tensor, gradient: torch.Tensor, size: float, radius: float) -> torch.Tensor:
    """Go against the gradient by a share of the radius, and back into the ball."""
    tiny = torch.finfo(value.dtype).tiny
    moved = value - gradient * (size * radius / max(float(gradient.norm()), tiny))
    return moved * min(1.0, radius / max(float(moved.norm()), tiny))


def _choose_radii(
    features: torch.Tensor, labels: npt.NDArray[np.int64], class_features: torch.Tensor, rows: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Return the radii of highest accuracy on the first image of each class, fitted on the others; the smallest of equal ones."""
    _, first = np.unique(labels[rows], return_index=True)
    kept = np.delete(rows, first)
    held_back = rows[first]
    if not len(kept):
        return RADII[0], BIAS_RADII[0]

    def accuracy(radii: tuple[float, float]) -> float:
        fitted = fit_near(features[kept], labels[kept], class_features, radius=radii[0], bias_radius=radii[1])
        return float((fitted.predict(features[held_back]) == labels[held_back]).mean())

    return max(itertools.product(RADII, BIAS_RADII), key=lambda radii: (accuracy(radii), -radii[0], -radii[1]))
