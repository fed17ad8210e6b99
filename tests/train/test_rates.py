import numpy as np
import pytest

from schemas.errors import InputError
from train.config import TrainConfig
from train.rates import DrawRates, check_rates, relative_rates
from train.request import Rate, View
from train.sampler import sample_indices
from train.sampling import Curation, Repetition, SamplingConfig

WEIGHTS = np.array([3.0, 0.0, 1.0, 0.5, 0.25, 1.25])


class Changing:
    """Draws the first epoch by other weights."""

    def __init__(self, first: np.ndarray = WEIGHTS) -> None:
        self._first = first

    def weights(self, epoch: int) -> np.ndarray:
        return WEIGHTS if epoch else self._first


def test_rates_are_multiples_of_an_even_draw() -> None:
    rates = relative_rates(WEIGHTS)
    assert rates.tolist() == [2.5, 0.0, 1 / 1.2, 0.5 / 1.2, 0.25 / 1.2, 1.25 / 1.2]
    assert relative_rates(np.full(4, 7.0)).tolist() == [1.0] * 4


def test_means_over_weighted_draws_are_those_over_samples() -> None:
    """Of any values of the samples, over the draws of many epochs as training makes them; without the correction they are not."""
    values, rates = np.array([5.0, 100.0, -2.0, 8.0, 40.0, 1.0]), DrawRates(Changing())
    plain, corrected = [], []
    for epoch in range(4000):
        draws = sample_indices(WEIGHTS, 7, 3, epoch, replacement=True)
        plain.append(values[draws].mean())
        corrected.append((values[draws] / rates.take(epoch, draws)).mean())
    even = values[WEIGHTS > 0].mean()
    assert np.mean(corrected) == pytest.approx(even, rel=0.02)
    assert np.mean(plain) == pytest.approx(float((WEIGHTS * values).sum() / WEIGHTS.sum()), rel=0.02)
    assert abs(np.mean(plain) - even) > 4


def test_every_epoch_has_its_own() -> None:
    rates = DrawRates(Changing(first=np.ones(6)))
    rows = np.array([0, 2, 0])
    assert rates.take(0, rows).tolist() == [1.0, 1.0, 1.0]
    assert rates.take(1, rows).tolist() == pytest.approx([2.5, 1 / 1.2, 2.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement": False}, "with replacement: false is not what their weights say"),
        ({"sampling": SamplingConfig(repetition=Repetition(decay=0.5))}, "with sampling.repetition is not"),
        ({"sampling": SamplingConfig(curation=Curation(names="names.txt"))}, "with sampling.curation is not"),
    ],
)
def test_other_draws_are_refused(settings: dict[str, object], message: str) -> None:
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        check_rates(config, (View(), Rate()))
    check_rates(config, (View(),))
    check_rates(TrainConfig(), (View(), Rate()))
