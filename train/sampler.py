"""Which samples an epoch shows and in which order: pure functions of (weights, seed, epoch).

Every draw comes from Philox, a counter-based generator (Salmon et al., SC 2011), read as raw 64-bit words: numpy promises to keep
those, while it may change what its distributions and shuffles return. A word is addressed by (seed, epoch, stream, position), so a draw
depends neither on what was drawn before it nor on who draws it, and resuming at any step is arithmetic.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

# What one position of an epoch may draw: a caption, one of its rewrites, and ten tries at a crop.
WORDS_PER_POSITION = 24

_WORDS_PER_BLOCK = 4  # Philox4x64 makes four words per counter
_STREAM_SAMPLES, _STREAM_ORDER, _STREAM_POSITIONS, _STREAM_FURTHER, _STREAM_BATCHES = range(5)
_STREAMS = 16
# An expectation this close to a whole number is that number: the difference is rounding of the weights' sum.
_SNAP = 1e-9
_BLOCK = 1 << 16


def sample_indices(weights: Weights, num_samples: int, seed: int, epoch: int, *, replacement: bool) -> Indices:
    """Return `num_samples` indices into `weights`, in the order in which the epoch shows them.

    With replacement every sample comes `floor(e)` or `ceil(e)` times, where `e = num_samples * weight / sum(weights)`, and `e` times on
    average over epochs and seeds (systematic sampling): equal weights and one draw per sample show each sample exactly once. Without
    replacement, no sample comes twice, and the set has the distribution of drawing one after the other in proportion to weight
    (Efraimidis and Spirakis, 2006; the Gumbel-top-k trick); asking for more samples than have a positive weight is an error. The order
    is a uniform permutation in both cases. Zero weights are never drawn, and adding some at the end changes nothing.

    Costs O(n log n): some 10 s per 100 million samples on one core, and 32 bytes per sample while it runs.
    """
    check_weights(weights)
    if num_samples < 0 or seed < 0 or epoch < 0:
        raise InputError(f"num_samples, seed and epoch are 0 or more, got {num_samples}, {seed} and {epoch}")
    if num_samples == 0:
        return np.zeros(0, dtype=np.int64)
    num_positive = int(np.count_nonzero(weights))
    if num_positive == 0:
        raise InputError(f"none of the {len(weights)} samples has a positive weight; check the selection's weight")
    if replacement:
        counts = _draw_counts(weights, num_samples, _units(seed, epoch))
        drawn = np.repeat(np.arange(len(weights), dtype=np.int64), counts)
    elif num_samples <= num_positive:
        drawn = _draw_distinct(weights, num_samples, seed, epoch)
    else:
        raise InputError(
            f"{num_samples} samples were asked for without replacement, {num_positive} have a positive weight; "
            "lower epoch_samples or set replacement=true"
        )
    return drawn[_permutation(num_samples, seed, epoch, _STREAM_ORDER)]


def permute_batches(num_batches: int, seed: int, epoch: int) -> Indices:
    """Return a permutation of the batches of an epoch, for batches that are made of the draws in an order of their own."""
    return _permutation(num_batches, seed, epoch, _STREAM_BATCHES)


def effective_sample_size(weights: Weights) -> float:
    """Return (sum w)^2 / sum w^2: how many equally weighted samples carry as much information (Kish, 1965); 0 for no weight at all."""
    check_weights(weights)
    peak = float(weights.max(initial=0.0))
    if peak == 0.0:
        return 0.0
    scaled = weights / peak  # squares neither overflow nor vanish
    return float(scaled.sum() ** 2 / np.square(scaled).sum())


def check_weights(weights: Weights) -> None:
    """Raise where a weight is negative, infinite or not a number."""
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise InputError(
            f"weights are finite and 0 or more; sample {bad[0]} has {weights[bad[0]]} ({len(bad)} such samples): correct the weight expression"
        )


def position_words(seed: int, epoch: int, start: int, stop: int) -> Words:
    """Return the random words of positions `start` to `stop` of an epoch, shape (stop - start, WORDS_PER_POSITION)."""
    blocks = WORDS_PER_POSITION // _WORDS_PER_BLOCK
    words = _words(seed, epoch, _STREAM_POSITIONS, (stop - start) * WORDS_PER_POSITION, first_block=start * blocks)
    return words.reshape(stop - start, WORDS_PER_POSITION)


def further_seeds(seed: int, epoch: int, start: int, stop: int) -> list[int]:
    """Return one 64-bit seed per position for whatever else it draws: further views and texts."""
    block = start // _WORDS_PER_BLOCK
    words = _words(seed, epoch, _STREAM_FURTHER, stop - block * _WORDS_PER_BLOCK, first_block=block)
    return [int(word) for word in words[start - block * _WORDS_PER_BLOCK :]]


def uniforms(words: Words) -> npt.NDArray[np.float64]:
    """Return words as floats in [0, 1), with 53 random bits each."""
    floats: npt.NDArray[np.float64] = (words >> np.uint64(11)) * np.float64(2.0**-53)
    return floats


def _words(seed: int, epoch: int, stream: int, count: int, first_block: int = 0) -> Words:
    key = np.array([seed % 2**64, epoch * _STREAMS + stream], dtype=np.uint64)
    counter = np.array([first_block, 0, 0, 0], dtype=np.uint64)
    words: Words = np.random.Philox(key=key, counter=counter).random_raw(count)
    return words


def _units(seed: int, epoch: int) -> int:
    """Return where in [0, 2^64) the grid of systematic sampling starts."""
    return int(_words(seed, epoch, _STREAM_SAMPLES, 1)[0])


def _draw_counts(weights: Weights, num_samples: int, start: int) -> Indices:
    """Return how often each sample is drawn; adds up to `num_samples`, each count the floor or the ceiling of its expectation."""
    # Scaled by the largest first, so that the sum can neither overflow nor vanish.
    peak = float(weights.max())
    total = sum(float((weights[block] / peak).sum()) for block in _blocks(len(weights)))
    counts = np.empty(len(weights), dtype=np.int64)
    fractions = np.empty(len(weights))
    for block in _blocks(len(weights)):
        expected = weights[block] / peak * (num_samples / total)
        nearest = np.rint(expected)
        snapped = (nearest >= 1) & (np.abs(expected - nearest) <= _SNAP * nearest)
        np.copyto(expected, nearest, where=snapped)
        fractions[block], whole = np.modf(expected)
        counts[block] = whole
    rest = num_samples - int(counts.sum())
    if rest == 0:
        return counts
    # Whole units of 2^-shift samples: sums of floats would drop or repeat a sample at 100 million rows.
    shift = 62 - rest.bit_length()
    units = fractions.view(np.int64)  # in place
    factor = rest / float(fractions.sum()) * 2.0**shift
    for block in _blocks(len(weights)):
        units[block] = np.rint(fractions[block] * factor).astype(np.int64)
    _balance(units, rest << shift, 1 << shift)
    # Grid points lie at offset + k * 2^shift; a sample is drawn once for each point in its stretch of the line.
    offset = start >> (64 - shift)
    end = passed = 0
    for block in _blocks(len(weights)):
        ends = np.cumsum(units[block]) + end
        points = (ends + ((1 << shift) - 1 - offset)) >> shift
        counts[block] += np.diff(points, prepend=np.int64(passed))
        end, passed = int(ends[-1]), int(points[-1])
    return counts


def _blocks(count: int) -> Iterator[slice]:
    """Yield slices that cover `count` elements; temporary arrays of one fit the processor's cache."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _balance(units: Indices, target: int, limit: int) -> None:
    """Move units in place, each by as little as possible, until they add up to `target`; those at 0 and at `limit` stay."""
    np.clip(units, 0, limit, out=units)
    while gap := target - int(units.sum()):
        movable = sum(int(np.count_nonzero(_is_movable(units[block], limit))) for block in _blocks(len(units)))
        assert movable, "rounding alone cannot have filled every unit"
        share = max(1, abs(gap) // movable)
        left = abs(gap) // share
        for block in _blocks(len(units)):
            part = units[block]
            chosen = np.flatnonzero(_is_movable(part, limit))[:left]
            part[chosen] = np.clip(part[chosen] + (share if gap > 0 else -share), 0, limit)
            left -= len(chosen)
            if not left:
                break


def _is_movable(units: Indices, limit: int) -> npt.NDArray[np.bool_]:
    return (units > 0) & (units < limit)


def _draw_distinct(weights: Weights, num_samples: int, seed: int, epoch: int) -> Indices:
    """Return `num_samples` different indices in ascending order."""
    draws = uniforms(_words(seed, epoch, _STREAM_SAMPLES, len(weights)))
    draws += 2.0**-54  # never 0, whose logarithm is infinite
    arrivals = np.log(draws, out=draws)
    np.negative(arrivals, out=arrivals)
    with np.errstate(divide="ignore", over="ignore"):
        # Of independent exponential clocks with rates w the first k to ring are an Efraimidis-Spirakis sample.
        np.divide(arrivals, weights, out=arrivals)
    arrivals[weights == 0] = np.inf
    threshold = np.partition(arrivals, num_samples - 1)[num_samples - 1]
    chosen = arrivals < threshold
    ties = np.flatnonzero((arrivals == threshold) & (weights > 0))
    chosen[ties[: num_samples - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)


def _permutation(count: int, seed: int, epoch: int, stream: int) -> Indices:
    """Return a permutation of `count` positions, the same on every machine and in every numpy."""
    # The low bits carry the position and the others are random, so a plain sort, whose order of ties no one sees, sorts positions along.
    bits = max(1, (count - 1).bit_length())
    mask = np.uint64((1 << bits) - 1)
    keys = _words(seed, epoch, stream, count)
    keys &= ~mask
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= mask
    return keys.view(np.int64)
