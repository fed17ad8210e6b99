"""Linear probes: a logistic regression on the images' features, on all training images or on a few of each class.

The protocol of Radford et al. (2021): features before the contrastive projection, L-BFGS, the inverse strength of the L2 penalty, C, chosen on a
fifth of the training images among 96 values from 1e-6 to 1e6, spaced evenly in their logarithms, by a search that halves its step;
then fitted again on all of them. Few-shot classifiers take C = 0.316, since there is nothing to choose it on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from schemas.errors import InputError

NUM_STRENGTHS = 96
FEW_SHOT_STRENGTH = 0.316
_MAX_ITERATIONS = 1_000
_FIRST_STEP = 16
_VALIDATION_PART = 5


@dataclass(frozen=True)
class Classifier:
    """A fitted logistic regression; `weight` is (classes, d)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def predict(self, features: torch.Tensor) -> npt.NDArray[np.int64]:
        """Return the likeliest class of each row."""
        scores = features.to(self.weight) @ self.weight.T + self.bias
        found: npt.NDArray[np.int64] = scores.argmax(dim=1).cpu().numpy()
        return found


def fit(features: torch.Tensor, labels: npt.NDArray[np.int64], num_classes: int, *, strength: float) -> Classifier:
    """Fit a multinomial logistic regression: the least of C * sum of cross-entropies + |W|^2 / 2; the bias is free.

    Starts at zero, so equal inputs give equal results. Computed in double precision on the features' device.
    """
    rows = features.double()
    own = torch.from_numpy(labels).to(rows.device)
    weight = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=rows.dtype, device=rows.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(rows @ weight.T + bias, own)
        loss = loss + weight.square().sum() / (2 * strength * len(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Classifier(weight.detach(), bias.detach())


def choose_strength(features: torch.Tensor, labels: npt.NDArray[np.int64], num_classes: int, *, seed: int = 0) -> float:
    """Return the C of highest accuracy on a fifth of the images, drawn by `seed`; the smallest of equal ones."""
    strengths = np.logspace(-6, 6, NUM_STRENGTHS)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_back, kept = np.split(order, [max(1, len(order) // _VALIDATION_PART)])
    accuracies: dict[int, float] = {}

    def accuracy(index: int) -> float:
        if index not in accuracies:
            fitted = fit(features[kept], labels[kept], num_classes, strength=float(strengths[index]))
            accuracies[index] = float((fitted.predict(features[held_back]) == labels[held_back]).mean())
        return accuracies[index]

    candidates = [*range(0, NUM_STRENGTHS, _FIRST_STEP), NUM_STRENGTHS - 1]
    best = max(candidates, key=lambda index: (accuracy(index), -index))
    step = _FIRST_STEP
    while step > 1:
        step //= 2
        around = [index for index in (best - step, best, best + step) if 0 <= index < NUM_STRENGTHS]
        best = max(around, key=lambda index: (accuracy(index), -index))
    return float(strengths[best])


def measure_probe(
    features: torch.Tensor,
    labels: npt.NDArray[np.int64],
    test_features: torch.Tensor,
    test_labels: npt.NDArray[np.int64],
    num_classes: int,
) -> dict[str, float]:
    """Return the accuracy and mean per-class recall of a linear probe, and log10 of its C."""
    _check(labels)
    strength = choose_strength(features, labels, num_classes)
    found = fit(features, labels, num_classes, strength=strength).predict(test_features)
    return {
        "probe_acc1": float((found == test_labels).mean()),
        "probe_mean_per_class_recall": _recall(found, test_labels),
        "chance_probe_acc1": 1 / num_classes,
        "probe_log10_strength": math.log10(strength),
        "num_probe_images": float(len(labels)),
    }


def measure_few_shot(
    features: torch.Tensor,
    labels: npt.NDArray[np.int64],
    test_features: torch.Tensor,
    test_labels: npt.NDArray[np.int64],
    num_classes: int,
    *,
    shots: Sequence[int],
    num_seeds: int,
) -> dict[str, float]:
    """Return for each number of shots the mean accuracy over draws of the training images, and its standard deviation.

    A class with fewer images gives all it has.
    """
    _check(labels)
    metrics: dict[str, float] = {}
    for count in shots:
        accuracies = []
        for seed in range(num_seeds):
            rows = draw_shots(labels, count, seed)
            fitted = fit(features[rows], labels[rows], num_classes, strength=FEW_SHOT_STRENGTH)
            accuracies.append(float((fitted.predict(test_features) == test_labels).mean()))
        metrics[f"shots_{count}_acc1"] = float(np.mean(accuracies))
        metrics[f"chance_shots_{count}_acc1"] = 1 / num_classes
        metrics[f"shots_{count}_acc1_std"] = float(np.std(accuracies, ddof=1)) if num_seeds > 1 else 0.0
    return metrics


def draw_shots(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the rows of `count` images of each class; those of fewer shots are among those of more."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _check(labels: npt.NDArray[np.int64]) -> None:
    if len(np.unique(labels)) < 2:
        raise InputError(f"a classifier needs training images of two classes at least, got {len(np.unique(labels))}")


def _recall(found: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    return float(np.mean([(found[labels == label] == label).mean() for label in np.unique(labels)]))
