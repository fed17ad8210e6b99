import numpy as np
import pytest

from train.feedback import feedback_factors, probability_of_low
from train.sampling import Feedback

LOSSES = np.array([1.0, 2.0, 3.0, np.nan])


def test_hard_samples_gain_in_proportion_and_easy_ones_the_inverse() -> None:
    assert feedback_factors(LOSSES, Feedback(prefer="hard")) == pytest.approx([0.5, 1, 1.5, 1])
    assert feedback_factors(LOSSES, Feedback(prefer="hard", power=2)) == pytest.approx([0.25, 1, 2.25, 1])
    assert feedback_factors(LOSSES, Feedback(prefer="easy")) == pytest.approx([2, 1, 2 / 3, 1])


def test_no_factor_exceeds_the_most() -> None:
    losses = np.array([0.0, 1e-9, 1.0, 1000.0])
    for prefer in ("hard", "easy", "clean"):
        factors = feedback_factors(losses, Feedback(prefer=prefer, most=4))
        assert factors.min() >= 0.25
        assert factors.max() <= 4


def test_without_losses_nothing_changes() -> None:
    assert feedback_factors(np.full(3, np.nan), Feedback()).tolist() == [1, 1, 1]
    assert feedback_factors(np.full(3, 2.0), Feedback(prefer="clean")).tolist() == [1, 1, 1]


def test_clean_tells_the_two_components_apart() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(1, 0.2, 700), rng.normal(3, 0.4, 300)]).clip(0)
    probabilities = probability_of_low(losses)
    assert (probabilities[:700] > 0.5).mean() > 0.98
    assert (probabilities[700:] < 0.5).mean() > 0.98
    factors = feedback_factors(losses, Feedback(prefer="clean"))
    assert factors[:700].mean() > 5 * factors[700:].mean()
