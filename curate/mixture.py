"""A mixture of two normal distributions over one number, fitted by expectation and maximisation."""

from dataclasses import dataclass

import numpy as np

_ITERATIONS = 1_000
# Change of the mean log-likelihood at which the fit has converged.
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Mixture:
    """Two components, the one with the lower mean first: shares that add up to 1, means, variances."""

    shares: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def upper_probability(self, values: np.ndarray) -> np.ndarray:
        """Return the posterior probability of the upper component, 0 to 1.

        Where variances differ the wider component wins at both far ends. Beyond the value at which the posterior turns it is held, so
        that a higher value never has a lower probability.
        """
        low, high = 1 / self.variances
        if low != high:
            turn = (self.means[0] * low - self.means[1] * high) / (low - high)
            values = np.maximum(values, turn) if low > high else np.minimum(values, turn)
        densities = self._log_densities(np.asarray(values, np.float64))
        return np.asarray(0.5 * (1 + np.tanh(0.5 * (densities[1] - densities[0]))))

    def _log_densities(self, values: np.ndarray) -> np.ndarray:
        gaps = values[None] - self.means[:, None]
        with np.errstate(divide="ignore"):  # a share may have become 0
            shares = np.log(self.shares / np.sqrt(self.variances))[:, None]
        return np.asarray(shares - 0.5 * gaps**2 / self.variances[:, None])


def fit_mixture(values: np.ndarray, counts: np.ndarray, min_variance: float) -> Mixture:
    """Return the mixture most likely to give `values`, in rising order and not all equal, each `counts` times.

    Starts from the split in two that leaves the least variance within the halves (Otsu 1979), so that the same values give the same fit.
    No variance falls below `min_variance`, which keeps a component from shrinking onto one value.
    """
    values, counts = values.astype(np.float64), counts.astype(np.float64)
    upper = np.zeros(len(values))
    upper[_best_split(values, counts) :] = 1.0
    before = -np.inf
    mixture = _maximise(values, counts, upper, min_variance)
    for _ in range(_ITERATIONS):
        densities = mixture._log_densities(values)
        together = np.logaddexp(*densities)
        likelihood = float(counts @ together) / counts.sum()
        if likelihood - before < _TOLERANCE:
            break
        before = likelihood
        mixture = _maximise(values, counts, np.exp(densities[1] - together), min_variance)
    order = np.argsort(mixture.means, kind="stable")
    return Mixture(mixture.shares[order], mixture.means[order], mixture.variances[order])


def _best_split(values: np.ndarray, counts: np.ndarray) -> int:
    """Return where the upper half begins, at least 1."""
    below, total = np.cumsum(counts)[:-1], counts.sum()
    sums, whole = np.cumsum(counts * values)[:-1], float(counts @ values)
    between = (sums * total - whole * below) ** 2 / np.maximum(below * (total - below), 1e-300)
    return int(between.argmax()) + 1


def _maximise(values: np.ndarray, counts: np.ndarray, upper: np.ndarray, min_variance: float) -> Mixture:
    belongs = np.stack([counts * (1 - upper), counts * upper])
    sizes = np.maximum(belongs.sum(axis=1), 1e-300)
    means = belongs @ values / sizes
    spread = (belongs * (values[None] - means[:, None]) ** 2).sum(axis=1) / sizes
    return Mixture(sizes / counts.sum(), means, np.maximum(spread, min_variance))
