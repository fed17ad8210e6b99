"""Weights that change from epoch to epoch: a share of the best, less for what was drawn often, evened out values. Pure functions."""

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from train.ragged import Ragged
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


def balance_weights(weights: Weights, labels: Ragged, power: float) -> Weights:
    """Return the weights divided by the `power` of the total weight of the sample's label.

    Of several labels the one with the least weight counts. With power 1 every label of a column with one label per sample ends with the
    same total. Samples without any label are balanced as if that were one.
    """
    totals, bare_total = _total_weights(weights, labels)
    balanced = np.zeros_like(weights)
    for rows, sizes, values in labels.blocks():
        least = np.full(len(sizes), bare_total)
        has_any = sizes > 0
        if has_any.any():
            least[has_any] = np.minimum.reduceat(totals[values], (np.cumsum(sizes) - sizes)[has_any])
        own = weights[rows]
        np.divide(own, least**power, out=balanced[rows], where=(own > 0) & (least > 0))
    return balanced


def _total_weights(weights: Weights, labels: Ragged) -> tuple[Weights, float]:
    """Return the weight of all samples with each label, which counts once where a sample has it twice, and of those without any."""
    num_labels = int(labels.values.max(initial=-1)) + 1
    totals, bare_total = np.zeros(num_labels), 0.0
    for rows, sizes, values in labels.blocks():
        own = weights[rows]
        pairs = np.unique(np.repeat(np.arange(len(sizes)), sizes) * num_labels + values)
        if len(pairs):
            totals += np.bincount(pairs % num_labels, own[pairs // num_labels], minlength=num_labels)
        bare_total += float(own[sizes == 0].sum())
    return totals, bare_total


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
