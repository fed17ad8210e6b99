"""All pairs within a Hamming radius equal brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.hamming import distance, near_pairs, plan_bands


def brute_force(hashes: np.ndarray, max_distance: int) -> list[tuple[int, int]]:
    found = []
    for left in range(len(hashes)):
        near = np.flatnonzero(np.bitwise_count(hashes[left] ^ hashes[left + 1 :]) <= max_distance)
        found += [(left, left + 1 + int(right)) for right in near]
    return found


def planted(num: int, max_distance: int, seed: int) -> np.ndarray:
    """Return random hashes, a tenth of them copies with up to two bits more changed than the radius allows."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, num, dtype=np.uint64)
    changes = np.zeros(num // 10, np.uint64)
    for _ in range(max_distance + 2):
        bit = np.uint64(1) << random.integers(0, 64, len(changes), dtype=np.uint64)
        changes ^= np.where(random.random(len(changes)) < 0.8, bit, np.uint64(0))
    hashes[: len(changes)] = hashes[random.integers(0, num, len(changes))] ^ changes
    return hashes


@pytest.mark.parametrize("max_distance", [0, 1, 3, 6, 10, 16])
def test_planted_neighbours_are_found(max_distance: int) -> None:
    hashes = planted(20_000, max_distance, seed=max_distance)
    left, right = near_pairs(hashes, max_distance)
    wanted = brute_force(hashes, max_distance)
    assert len(wanted) > 50
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == wanted


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 255), max_size=40),
    st.integers(0, 20),
)
@settings(max_examples=200, deadline=None)
def test_any_hashes(values: list[int], max_distance: int) -> None:
    hashes = np.array(values, np.uint64)
    left, right = near_pairs(hashes, max_distance)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == brute_force(hashes, max_distance)


@pytest.mark.parametrize("num_hashes", [2, 1000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("max_distance", [0, 4, 10])
def test_bands_cover_every_bit_once(num_hashes: int, max_distance: int) -> None:
    bands, num_equal = plan_bands(num_hashes, max_distance)
    assert len(bands) == max_distance + num_equal
    assert [bit for start, length in bands for bit in range(start, start + length)] == list(range(64))


def test_a_radius_beyond_the_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="max_distance is 64"):
        plan_bands(10, 64)


def test_distance() -> None:
    assert distance(np.array([0b1011], np.uint64), np.array([0b0110], np.uint64)).tolist() == [3]
