"""From what a run has lost on each sample so far to the weights of its next epoch."""

import numpy as np
import numpy.typing as npt

from train.sampler import Weights
from train.sampling import Feedback

_ITERATIONS = 50
_LEAST_DEVIATION = 1e-3


def feedback_factors(losses: npt.NDArray[np.float64], config: Feedback) -> Weights:
    """Return the factor on each sample's weight, 1 for a sample without a loss (NaN): it was never drawn.

    `losses` are means over a sample's draws, 0 or more.
    """
    factors = np.ones(len(losses))
    drawn = np.isfinite(losses)
    if not drawn.any():
        return factors
    own = losses[drawn]
    if config.prefer == "clean":
        found = probability_of_low(own)
    else:
        power = config.power if config.prefer == "hard" else -config.power
        found = (np.maximum(own, 1e-12) / max(float(own.mean()), 1e-12)) ** power
    factors[drawn] = np.clip(found, 1 / config.most, config.most)
    return factors


def probability_of_low(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the probability that each loss comes from the lower of two Gaussians fitted to all (DivideMix, arXiv 2002.07394).

    Fitted by expectation maximisation from the lower and the upper quartile; 1 for all where the losses do not differ.
    """
    deviation = float(losses.std())
    if deviation < _LEAST_DEVIATION:
        return np.ones(len(losses))
    means = np.quantile(losses, [0.25, 0.75])
    deviations = np.full(2, deviation)
    shares = np.full(2, 0.5)
    lower = np.zeros(len(losses))
    for _ in range(_ITERATIONS):
        # The ratio of the two densities in logarithms: far out both are 0 as numbers.
        logs = -0.5 * ((losses[:, None] - means) / deviations) ** 2 - np.log(deviations) + np.log(shares)
        lower = 1 / (1 + np.exp(np.clip(logs[:, 1] - logs[:, 0], -700, 700)))
        parts = np.stack([lower, 1 - lower])
        totals = np.maximum(parts.sum(axis=1), 1e-9)
        means = parts @ losses / totals
        spread = (parts * (losses - means[:, None]) ** 2).sum(axis=1) / totals
        deviations = np.maximum(np.sqrt(spread), _LEAST_DEVIATION)
        shares = totals / totals.sum()
    return lower if means[0] <= means[1] else 1 - lower
