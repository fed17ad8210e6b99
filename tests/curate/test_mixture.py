"""Two components are found again, whatever their sizes; the posterior never falls."""

import math

import numpy as np
import pytest

from curate.mixture import Mixture, fit_mixture


def plain_posterior(mixture: Mixture, value: float) -> float:
    low, high = (
        share / math.sqrt(variance) * math.exp(-((value - mean) ** 2) / (2 * variance))
        for share, mean, variance in zip(mixture.shares, mixture.means, mixture.variances, strict=True)
    )
    return high / (low + high)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_components_are_found_again(share: float) -> None:
    random = np.random.default_rng(0)
    is_upper = random.random(40_000) < share
    values = np.where(is_upper, random.normal(0.7, 0.08, 40_000), random.normal(0.3, 0.05, 40_000))
    found = fit_mixture(np.sort(values), np.ones(40_000), 1e-6)
    assert found.shares == pytest.approx([1 - share, share], abs=0.01)
    assert found.means == pytest.approx([0.3, 0.7], abs=0.01)
    assert np.sqrt(found.variances) == pytest.approx([0.05, 0.08], abs=0.01)
    probability = found.upper_probability(values)
    assert probability[is_upper].mean() > 0.95
    assert probability[~is_upper].mean() < 0.05
    assert probability[:50] == pytest.approx([plain_posterior(found, value) for value in values[:50]], abs=1e-9)


def test_counts_mean_as_many_equal_values() -> None:
    values, counts = np.array([0.0, 0.1, 0.2, 0.8, 1.0]), np.array([50, 30, 4, 10, 20])
    together, apart = fit_mixture(values, counts, 1e-4), fit_mixture(np.repeat(values, counts), np.ones(114), 1e-4)
    assert together.means == pytest.approx(apart.means.tolist(), abs=1e-6)
    assert together.variances == pytest.approx(apart.variances.tolist(), abs=1e-6)


@pytest.mark.parametrize("variances", [(0.01, 0.09), (0.09, 0.01), (0.04, 0.04)])
def test_a_higher_value_never_has_a_lower_probability(variances: tuple[float, float]) -> None:
    mixture = Mixture(np.array([0.6, 0.4]), np.array([0.4, 0.6]), np.array(variances))
    probability = mixture.upper_probability(np.linspace(-3, 4, 2_001))
    assert (np.diff(probability) >= 0).all()
    assert probability[-1] > 0.9 or variances[0] > variances[1]
    assert mixture.upper_probability(np.array([0.5]))[0] == pytest.approx(plain_posterior(mixture, 0.5))


def test_no_variance_falls_below_the_least() -> None:
    found = fit_mixture(np.array([0.0, 1.0]), np.array([9, 1]), 5e-4)
    assert found.variances.tolist() == [5e-4, 5e-4]
    assert found.upper_probability(np.array([0.0, 1.0])) == pytest.approx([0, 1])
