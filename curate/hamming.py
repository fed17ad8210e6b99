"""All pairs of 64-bit hashes within a Hamming radius: exact, and never quadratic for hashes that are spread out.

Cut the 64 bits into bands. Two hashes that differ in at most d bits differ in at most d bands, so of d + k bands at least k are equal:
for every choice of k bands, sorting brings together what is equal in them, and only neighbours are compared (Norouzi et al. 2012 for
k = 1). More bands make more sorts of fewer comparisons each; the number with the least work is taken.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np

BITS = 64
# Nanoseconds of sorting and gathering one hash, and of one comparison, measured.
_SORT_NS, _COMPARE_NS = 45.0, 6.0
_MAX_BANDS = 16
# Comparisons made at once: bounds memory where very many hashes agree in the chosen bands.
_BLOCK = 4_000_000
_INDEX_BITS = 32

Bands = tuple[tuple[int, int], ...]  # first bit and number of bits of each, from the lowest
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def near_pairs(hashes: np.ndarray, max_distance: int, *, map_items: Map = map) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions (left < right, sorted) of all pairs of `hashes` (uint64) that differ in at most `max_distance` bits.

    `map_items` shares the work, as `PoolWork.map` does. Memory: about 50 bytes per hash and worker, and the pairs.
    """
    assert hashes.dtype == np.uint64
    assert len(hashes) < 1 << _INDEX_BITS
    if len(hashes) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    bands, num_equal = plan_bands(len(hashes), max_distance)
    choices = list(combinations(range(len(bands)), num_equal))
    found = list(map_items(functools.partial(_find, hashes, max_distance, bands), choices))
    left = np.concatenate([pair[0] for pair in found])
    right = np.concatenate([pair[1] for pair in found])
    order = np.lexsort((right, left))
    return left[order], right[order]


def plan_bands(num_hashes: int, max_distance: int) -> tuple[Bands, int]:
    """Return the bands and how many of them must be equal, at the least estimated work for hashes that are spread evenly."""
    bands, num_equal, _ = _plan(num_hashes, max_distance)
    return bands, num_equal


def search_seconds(num_hashes: int, max_distance: int) -> float:
    """Return about what `near_pairs` costs one core."""
    return _plan(num_hashes, max_distance)[2] * 1e-9


def _plan(num_hashes: int, max_distance: int) -> tuple[Bands, int, float]:
    """Return bands, how many must be equal, and the nanoseconds estimated."""
    if not 0 <= max_distance < BITS:
        raise ValueError(f"max_distance is {max_distance}; it must be 0 to {BITS - 1}")
    best, best_cost = (max_distance + 1, 1), math.inf
    for num_equal in range(1, _MAX_BANDS + 1):
        num_bands = max_distance + num_equal
        if num_bands > BITS:
            break
        bits = BITS * num_equal / num_bands
        pairs = num_hashes * num_hashes / 2 / 2**bits
        cost = math.comb(num_bands, num_equal) * (num_hashes * _SORT_NS + pairs * _COMPARE_NS)
        if cost < best_cost:
            best, best_cost = (num_bands, num_equal), cost
    num_bands, num_equal = best
    edges = [BITS * band // num_bands for band in range(num_bands + 1)]
    return tuple((start, end - start) for start, end in pairwise(edges)), num_equal, best_cost


def distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the numbers of bits in which hashes differ."""
    return np.asarray(np.bitwise_count(left ^ right))


def _find(
    hashes: np.ndarray, max_distance: int, bands: Bands, chosen: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that are equal in the chosen bands, those only whose first equal bands they are: so each is found once."""
    order, keys = _sort_by_bands(hashes, bands, chosen)
    found_left, found_right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first, second in _equal_neighbours(keys):
        left, right = order[first], order[second]
        difference = hashes[left] ^ hashes[right]
        is_near = np.bitwise_count(difference) <= max_distance
        left, right, difference = left[is_near], right[is_near], difference[is_near]
        is_first = _first_equal_bands(difference, bands, chosen)
        found_left.append(np.minimum(left, right)[is_first])
        found_right.append(np.maximum(left, right)[is_first])
    return np.concatenate(found_left), np.concatenate(found_right)


def _sort_by_bands(hashes: np.ndarray, bands: Bands, chosen: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions in the order of the chosen bands' bits, and those bits (of more than 32 the lowest) in that order."""
    keys = np.zeros(len(hashes), np.uint64)
    for band in chosen:
        start, length = bands[band]
        mask = np.uint64((1 << length) - 1)
        keys = (keys << np.uint64(length)) | ((hashes >> np.uint64(start)) & mask)
    # Key and position in one number: sorting numbers is several times as fast as sorting positions by a key. Keys of over 32 bits lose
    # their highest, which only brings a few pairs more together.
    packed = (keys << np.uint64(_INDEX_BITS)) | np.arange(len(hashes), dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64((1 << _INDEX_BITS) - 1)).astype(np.int64), packed >> np.uint64(_INDEX_BITS)


def _equal_neighbours(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of pairs of positions whose sorted keys are equal, every such pair once."""
    ends = np.searchsorted(keys, keys, side="right") if len(keys) < 1000 else _run_ends(keys)
    positions = np.flatnonzero(ends - np.arange(len(keys)) > 1)
    partners = ends[positions] - positions - 1  # how many follow in the run
    start = 0
    totals = np.cumsum(partners)
    while start < len(positions):
        done = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, done + _BLOCK, side="right")))
        counts = partners[start:stop]
        first = np.repeat(positions[start:stop], counts)
        # 1, 2, ... for each position in turn.
        steps = np.arange(1, len(first) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first, first + steps
        start = stop


def _run_ends(keys: np.ndarray) -> np.ndarray:
    """Return for each of sorted keys the position after the last equal one."""
    last = np.append(np.flatnonzero(keys[1:] != keys[:-1]), len(keys) - 1)
    lengths = np.diff(last, prepend=-1)
    return np.repeat(last + 1, lengths)


def _first_equal_bands(difference: np.ndarray, bands: Bands, chosen: tuple[int, ...]) -> np.ndarray:
    """Tell where no band below the last chosen one is equal but the chosen ones."""
    is_first = np.ones(len(difference), bool)
    for band in range(chosen[-1] + 1):
        start, length = bands[band]
        is_equal = (difference >> np.uint64(start)) & np.uint64((1 << length) - 1) == 0
        is_first &= is_equal if band in chosen else ~is_equal
    return is_first
