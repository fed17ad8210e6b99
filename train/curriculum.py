"""Weights that change from epoch to epoch: a share of the best, less for what was drawn often, evened out values. Pure functions."""

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from train.sampler import Indices, Weights
from train.sampling import Curriculum


def curriculum_share(curriculum: Curriculum, epoch: int, num_epochs: float) -> float:
    """Return the share that an epoch draws from, moving linearly from `start` in epoch 0 to `end`.

    `num_epochs` is the length of the run; where the curriculum names no length of its own, its last epoch has the share `end`.
    """
    length = curriculum.epochs or max(num_epochs - 1, 0)
    done = min(1.0, epoch / length) if length > 0 else 1.0
    return curriculum.start + (curriculum.end - curriculum.start) * done


def keep_best(weights: Weights, scores: npt.NDArray[np.float32], share: float, *, highest: bool = True) -> Weights:
    """Return the weights with those outside the best `share` of the weighted samples set to 0; of equal scores the first samples stay."""
    drawn = np.flatnonzero(weights > 0)
    count = max(1, round(share * len(drawn)))
    if count >= len(drawn):
        return weights
    values = -scores[drawn] if highest else scores[drawn]
    # A partition finds the threshold in linear time; a sort would not, and the order inside does not matter.
    threshold = np.partition(values, count - 1)[count - 1]
    better = drawn[values < threshold]
    level = drawn[values == threshold][: count - len(better)]
    kept = np.zeros_like(weights)
    for rows in (better, level):
        kept[rows] = weights[rows]
    return kept


def balance_weights(weights: Weights, labels: npt.NDArray[np.int64], power: float) -> Weights:
    """Return the weights divided by the `power` of the total weight of the sample's label; -1 is no label.

    `labels` (n,) or (n, most). Of several labels the one with the least weight counts. With power 1 every label of a column with one label
    per sample ends with the same total.
    """
    columns = labels[:, None] if labels.ndim == 1 else labels
    num_labels = int(columns.max(initial=-1)) + 1
    # The last place is that of samples without any label; a label that a sample has twice counts once.
    totals = np.zeros(num_labels + 1)
    for column in range(columns.shape[1]):
        own = columns[:, column]
        repeated = (columns[:, :column] == own[:, None]).any(axis=1)
        counted = (own >= 0) & ~repeated
        totals[:num_labels] += np.bincount(own[counted], weights[counted], minlength=num_labels)
    is_bare = (columns < 0).all(axis=1)
    totals[num_labels] = weights[is_bare].sum()
    least = np.where(columns >= 0, totals[columns], np.inf).min(axis=1)
    least[is_bare] = totals[num_labels]
    balanced = np.zeros_like(weights)
    np.divide(weights, least**power, out=balanced, where=(weights > 0) & (least > 0))
    return balanced


def cap_rates(weights: Weights, num_samples: int, most: Indices, epoch: int) -> Weights:
    """Return weights that make nobody's expected draws exceed `most`, in proportion to the given ones as far as that allows.

    Where the cap binds, the draws that a sample may not have go to the others in proportion to their weight.
    """
    left = np.where(weights > 0, most, 0)
    if int(left.sum()) < num_samples:
        raise InputError(
            f"epoch {epoch} needs {num_samples} draws, and sampling.repetition.max_draws leaves {int(left.sum())}; train fewer epochs, "
            "lower epoch_samples, or raise max_draws"
        )
    rows = np.flatnonzero(left)
    own, room = weights[rows] / weights[rows].max(), left[rows].astype(np.float64)
    # Sorted by how soon a growing common factor fills them, the full ones are a prefix, found by trying every length at once.
    order = np.argsort(room / own, kind="stable")
    own, room = own[order], room[order]
    full_room = np.concatenate([[0.0], np.cumsum(room)[:-1]])
    open_weight = np.cumsum(own[::-1])[::-1]
    factors = (num_samples - full_room) / open_weight
    is_consistent = factors * own <= room * (1 + 1e-12)
    rates = np.zeros_like(weights)
    if is_consistent.any():
        first = int(np.argmax(is_consistent))
        rates[rows[order]] = np.where(np.arange(len(own)) < first, room, factors[first] * own)
    else:
        rates[rows[order]] = room
    return rates
