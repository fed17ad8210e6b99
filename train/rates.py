"""How often samples are drawn, for losses that correct for it: in an epoch, as a multiple of what an even draw would give."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from schemas.errors import InputError
from train.config import TrainConfig
from train.request import Rate, Request
from train.sampler import Indices, Weights

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]


def relative_rates(weights: Weights) -> Weights:
    """Return each sample's expected draws over those of an even draw among the samples that have a weight: n p for probabilities p.

    Their mean over these samples is 1, and the mean of 1 / rate over draws is 1 too.
    """
    rates: Weights = weights / weights[weights > 0].mean()
    return rates


class Scheduled(Protocol):
    """What a schedule says of rates."""

    def weights(self, epoch: int) -> Weights:
        """Return the weights that an epoch is drawn by."""


class DrawRates:
    """Answers requests for a `Rate`; keeps the newest epoch's rates."""

    def __init__(self, schedule: Scheduled) -> None:
        self._schedule = schedule
        self._epoch = -1
        self._rates: Weights = np.zeros(0)

    def take(self, epoch: int, indices: Indices) -> Floats:
        """Return the rates of samples that were drawn in an epoch."""
        if epoch != self._epoch:
            self._epoch, self._rates = epoch, relative_rates(self._schedule.weights(epoch))
        found: Floats = self._rates[indices].astype(np.float32)
        return found


def check_rates(config: TrainConfig, requests: Sequence[Request]) -> None:
    """Raise where a loss asks for rates and draws are not in proportion to weights."""
    if Rate() not in requests:
        return
    sampling = config.sampling
    reasons = {
        "replacement: false": not config.replacement,
        "sampling.repetition": sampling is not None and sampling.repetition is not None,
        "sampling.curation": sampling is not None and sampling.curation is not None,
    }
    for setting, is_given in reasons.items():
        if is_given:
            raise InputError(
                f"a loss corrects for how often samples are drawn, which with {setting} is not what their weights say; "
                "leave one of the two out"
            )
