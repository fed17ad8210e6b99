"""What every step of a run shows: the order of each epoch as a function of (weights, settings, seed, epoch), the same on every rank.

Weights of the epoch (curriculum.py) -> draws (sampler.py) -> batches (batching.py). Nothing is stored: where an epoch depends on those before
it, because of repetition or of batches of groups, a schedule that starts in the middle goes through the earlier epochs once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from train.batching import GroupBatcher, join_small_groups, neighbour_batches
from train.curriculum import balance_weights, cap_rates, curriculum_share, keep_best
from train.sampler import Indices, Weights, effective_sample_size, sample_indices
from train.sampling import SamplingConfig

_MOST_LABELS = 20


@dataclass(frozen=True, kw_only=True)
class EpochShape:
    """How large the epochs of a run are, and the seed of their draws."""

    batch_size: int  # samples per step over all ranks
    epoch_samples: int  # draws per epoch
    replacement: bool
    seed: int
    num_epochs: float = 1.0  # length of the run

    @property
    def num_steps(self) -> int:
        """The steps of an epoch; the last, incomplete batch is left out."""
        return self.epoch_samples // self.batch_size


@dataclass(frozen=True, kw_only=True)
class SampleValues:
    """What a sampling configuration reads of the samples, by the names of `SamplingConfig.columns`, and the neighbours found."""

    columns: Mapping[str, Any] = field(default_factory=dict)  # arrays, or Ragged where a sample has a list
    neighbours: npt.NDArray[np.int32] | None = None


class Schedule:
    """The batches of every epoch; asking for epochs in order costs each once."""

    def __init__(
        self,
        weights: Weights,
        shape: EpochShape,
        config: SamplingConfig,
        values: SampleValues,
        factors: Callable[[int], Weights | None] = lambda _: None,
    ) -> None:
        """`factors` returns what the weights of an epoch are multiplied by besides; it is asked for an epoch, and those before it, only
        once that epoch is."""
        self._shape = shape
        self._config = config
        self._values = values
        self._weights = weights
        if config.balance:
            self._weights = balance_weights(weights, values.columns["balance"], config.balance.power)
        self._groups = None
        if config.batches and config.batches.by:
            self._groups = join_small_groups(values.columns["batches"], weights > 0, shape.batch_size)
        self._factors = factors
        self._next_epoch = self._next_draws = 0
        self._last: Indices = np.zeros((0, shape.batch_size), dtype=np.int64)
        self._ready = self._last
        self._restart()

    def batches(self, epoch: int) -> Indices:
        """Return the rows of the dataset that an epoch shows, shape (steps, batch_size)."""
        if not self._has_history:
            return self._make(epoch)  # not kept: 8 bytes a draw
        if epoch < self._next_epoch - 1:
            self._restart()
        while self._next_epoch <= epoch:
            self._last = self._make(self._next_epoch)
            self._next_epoch += 1
        return self._last

    def weights(self, epoch: int) -> Weights:
        """Return the weights that an epoch is drawn by, before any penalty for repetition."""
        factors = self._factors(epoch)
        weights = self._weights if factors is None else self._weights * factors
        if self._config.curriculum:
            share = curriculum_share(self._config.curriculum, epoch, self._shape.num_epochs)
            scores = self._values.columns["curriculum"]
            weights = keep_best(weights, scores, share, highest=self._config.curriculum.highest)
        return weights

    @property
    def _has_history(self) -> bool:
        return self._config.repetition is not None or self._groups is not None

    def _restart(self) -> None:
        self._next_epoch = 0
        self._next_draws = 0
        self._last = np.zeros((0, self._shape.batch_size), dtype=np.int64)
        self._counts = np.zeros(len(self._weights) if self._config.repetition else 0, dtype=np.int64)
        self._ready = self._last
        self._batcher = None if self._groups is None else GroupBatcher(self._groups, self._shape.batch_size)

    def _make(self, epoch: int) -> Indices:
        num_steps, batch_size = self._shape.num_steps, self._shape.batch_size
        if self._batcher is not None:
            # Draws run ahead of what is shown by what waits for its group's next batch.
            while len(self._ready) < num_steps:
                draws = self._draw(self._next_draws, self.weights(epoch))
                batches = self._batcher.add(draws, self._shape.seed, self._next_draws)
                self._ready = np.concatenate([self._ready, batches])
                self._next_draws += 1
            batches, self._ready = self._ready[:num_steps], self._ready[num_steps:]
            return batches
        draws = self._draw(epoch, self.weights(epoch))
        if self._values.neighbours is not None and self._config.batches:
            return neighbour_batches(draws, self._values.neighbours, self._config.batches.size, batch_size)
        return draws.reshape(num_steps, batch_size)

    def _draw(self, epoch: int, weights: Weights) -> Indices:
        shape, repetition = self._shape, self._config.repetition
        count = shape.epoch_samples
        if repetition:
            # Drawn for whole batches only: what is not shown must not count.
            count = shape.num_steps * shape.batch_size
            weights = weights * repetition.decay**self._counts
            if repetition.max_draws:
                weights = cap_rates(weights, count, repetition.max_draws - self._counts, epoch)
        draws = sample_indices(weights, count, shape.seed, epoch, replacement=shape.replacement)
        if self._groups is None:
            draws = draws[: shape.num_steps * shape.batch_size]
        if repetition:
            self._counts += np.bincount(draws, minlength=len(self._counts))
        return draws


def describe_epoch(
    batches: Indices, weights: Weights, labels: npt.NDArray[np.int64] | None, names: Sequence[str] = ()
) -> dict[str, float]:
    """Return what `metrics.jsonl` says of an epoch's draws: effective sample size, different samples, and the share of each label.

    The 20 most frequent labels are named by `names`, or else by their number; samples without a label are `none`.
    """
    found = {
        "sampling/effective_sample_size": effective_sample_size(weights),
        "sampling/num_distinct": float(_count_distinct(batches, len(weights))),
    }
    if labels is not None:
        values, counts = np.unique(labels[batches], return_counts=True)
        for place in np.argsort(-counts, kind="stable")[:_MOST_LABELS].tolist():
            value = int(values[place])
            name = "none" if value < 0 else names[value] if value < len(names) else str(value)
            found[f"sampling/share_{name}"] = counts[place] / batches.size
    return found


def _count_distinct(rows: Indices, num_samples: int) -> int:
    is_shown = np.zeros(num_samples, dtype=bool)
    is_shown[rows.ravel()] = True
    return int(np.count_nonzero(is_shown))
