import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import InputError
from train.sampler import (
    WORDS_PER_POSITION,
    check_weights,
    effective_sample_size,
    position_words,
    sample_indices,
    uniforms,
)

# What the first release drew: a change here makes every run that goes on show other samples.
GOLDEN_WITH = [[2, 2, 3, 2, 3, 3, 4, 1, 3], [3, 2, 3, 3, 2, 2, 3, 3, 1]]
GOLDEN_WITHOUT = [[2, 3, 1], [3, 2, 1]]
GOLDEN_WORDS = [16518990952222093406, 5445256084115900348]

WEIGHTS = arrays(
    np.float64, st.integers(1, 60), elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.integers(1, 5).map(float))
).filter(lambda weights: weights.sum() > 0)
SEEDS = st.integers(0, 2**63)


@given(weights=WEIGHTS, num_samples=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_sample_comes_floor_or_ceil_of_its_expectation(
    weights: np.ndarray, num_samples: int, seed: int, epoch: int
) -> None:
    drawn = sample_indices(weights, num_samples, seed, epoch, replacement=True)
    assert drawn.dtype == np.int64
    assert len(drawn) == num_samples
    counts = np.bincount(drawn, minlength=len(weights))
    expected = num_samples * (weights / weights.sum())
    assert (counts >= np.floor(expected - 1e-6)).all()
    assert (counts <= np.ceil(expected + 1e-6)).all()
    assert not counts[weights == 0].any()


@given(weights=WEIGHTS, share=st.floats(0, 1), seed=SEEDS, epoch=st.integers(0, 1000))
def test_without_replacement_no_sample_comes_twice(weights: np.ndarray, share: float, seed: int, epoch: int) -> None:
    num_samples = int(share * np.count_nonzero(weights))
    drawn = sample_indices(weights, num_samples, seed, epoch, replacement=False)
    assert len(drawn) == num_samples == len(set(drawn.tolist()))
    assert (weights[drawn] > 0).all()


@given(weights=WEIGHTS, num_samples=st.integers(1, 100), seed=SEEDS, replacement=st.booleans())
def test_the_same_arguments_draw_the_same_samples(
    weights: np.ndarray, num_samples: int, seed: int, *, replacement: bool
) -> None:
    count = num_samples if replacement else min(num_samples, int(np.count_nonzero(weights)))
    first = sample_indices(weights, count, seed, 3, replacement=replacement)
    np.testing.assert_array_equal(first, sample_indices(weights.copy(), count, seed, 3, replacement=replacement))


@given(weights=WEIGHTS, extra=st.integers(1, 20), seed=SEEDS, replacement=st.booleans())
def test_samples_of_weight_zero_at_the_end_change_nothing(
    weights: np.ndarray, extra: int, seed: int, *, replacement: bool
) -> None:
    count = int(np.count_nonzero(weights))
    longer = np.concatenate([weights, np.zeros(extra)])
    np.testing.assert_array_equal(
        sample_indices(weights, count, seed, 0, replacement=replacement),
        sample_indices(longer, count, seed, 0, replacement=replacement),
    )


@given(count=st.integers(1, 200), weight=st.floats(1e-300, 1e308), seed=SEEDS)
def test_equal_weights_show_every_sample_once(count: int, weight: float, seed: int) -> None:
    drawn = sample_indices(np.full(count, weight), count, seed, 0, replacement=True)
    assert sorted(drawn.tolist()) == list(range(count))


@given(order=st.permutations(range(12)), seed=SEEDS)
def test_counts_above_one_follow_their_sample_when_the_dataset_is_reordered(order: list[int], seed: int) -> None:
    # Whole expectations leave nothing to chance: reordering the samples reorders the counts.
    weights = np.arange(12, dtype=np.float64)
    drawn = sample_indices(weights[order], 2 * int(weights.sum()), seed, 0, replacement=True)
    np.testing.assert_array_equal(np.bincount(drawn, minlength=12), 2 * weights[order])


def test_weights_are_only_relative() -> None:
    weights = np.array([0.5, 3, 0, 1.25, 7])
    for replacement, count in ((True, 50), (False, 3)):
        np.testing.assert_array_equal(
            sample_indices(weights, count, 1, 2, replacement=replacement),
            sample_indices(weights * 8, count, 1, 2, replacement=replacement),
        )


def test_rates_with_replacement_are_the_weights() -> None:
    weights = np.array([0.1, 0.2, 0.3, 1.4, 3.0])
    epochs = 4000
    counts = sum(
        np.bincount(sample_indices(weights, 3, 5, epoch, replacement=True), minlength=5) for epoch in range(epochs)
    )
    # Systematic draws vary less than independent ones, so the binomial error is an upper bound.
    expected = 3 * weights / weights.sum()
    error = np.sqrt(expected % 1 * (1 - expected % 1) / epochs) + 1e-9
    assert (np.abs(counts / epochs - expected) < 4 * error).all()


def test_rates_without_replacement_are_those_of_drawing_one_after_the_other() -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    epochs = 20_000
    seen: dict[frozenset[int], int] = {}
    for epoch in range(epochs):
        pair = frozenset(sample_indices(weights, 2, 11, epoch, replacement=False).tolist())
        seen[pair] = seen.get(pair, 0) + 1
    share = weights / weights.sum()
    chi_square = 0.0
    for first in range(4):
        for second in range(first):
            probability = share[first] * share[second] * (1 / (1 - share[first]) + 1 / (1 - share[second]))
            expected = epochs * probability
            chi_square += (seen[frozenset((first, second))] - expected) ** 2 / expected
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001


def test_every_order_is_equally_likely() -> None:
    epochs = 12_000
    orders: dict[tuple[int, ...], int] = {}
    for epoch in range(epochs):
        order = tuple(sample_indices(np.ones(3), 3, 2, epoch, replacement=True).tolist())
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 6
    assert sum((count - epochs / 6) ** 2 / (epochs / 6) for count in orders.values()) < 20.5


def test_golden_draws() -> None:
    weights = np.array([0, 1, 2, 3.5, 0.25])
    assert [sample_indices(weights, 9, 7, epoch, replacement=True).tolist() for epoch in (0, 1)] == GOLDEN_WITH
    assert [sample_indices(weights, 3, 7, epoch, replacement=False).tolist() for epoch in (0, 1)] == GOLDEN_WITHOUT
    assert position_words(7, 1, 3, 4)[0, :2].tolist() == GOLDEN_WORDS


@settings(max_examples=20)
@given(start=st.integers(0, 2**40), cut=st.integers(0, 9), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_the_draws_of_a_position_do_not_depend_on_who_asks(start: int, cut: int, seed: int, epoch: int) -> None:
    whole = position_words(seed, epoch, start, start + 9)
    parts = [position_words(seed, epoch, start, start + cut), position_words(seed, epoch, start + cut, start + 9)]
    assert whole.shape == (9, WORDS_PER_POSITION)
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_draws_of_different_places_differ() -> None:
    words = [position_words(seed, epoch, start, start + 1) for seed in (0, 1) for epoch in (0, 1) for start in (0, 1)]
    assert len({word for block in words for word in block.ravel().tolist()}) == 8 * WORDS_PER_POSITION


def test_uniforms_fill_the_unit_interval() -> None:
    values = uniforms(np.array([0, 2**64 - 1, 2**63], dtype=np.uint64))
    assert values.tolist() == [0.0, 1 - 2**-53, 0.5]


def test_a_million_samples_keep_their_rates() -> None:
    weights = np.random.default_rng(0).lognormal(0, 3, 1_000_000)
    counts = np.bincount(sample_indices(weights, 1_000_000, 1, 2, replacement=True), minlength=1_000_000)
    expected = 1_000_000 * weights / weights.sum()
    assert counts.sum() == 1_000_000
    assert (np.abs(counts - expected) <= 1 + 1e-6).all()


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.array([1, 1, 0.5, 0.1])) == pytest.approx(2.991150, abs=1e-6)
    assert effective_sample_size(np.full(10, 1e-200)) == pytest.approx(10)
    assert effective_sample_size(np.zeros(3)) == 0


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match=r"sample 1 has .*correct the weight expression"):
        check_weights(np.array([1.0, bad]))


def test_asking_for_more_than_there_is_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 samples were asked for without replacement, 2 have a positive weight"):
        sample_indices(np.array([1.0, 0, 1]), 3, 0, 0, replacement=False)
    with pytest.raises(InputError, match=r"none of the 2 samples has a positive weight"):
        sample_indices(np.zeros(2), 1, 0, 0, replacement=True)
