import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.batching import GroupBatcher, join_draws, join_small_groups, neighbour_batches

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 0)


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 30))
def test_groups_fill_a_batch_and_large_labels_stay_alone(sizes: list[int], batch_size: int) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 3 - 1, sizes)
    groups = join_small_groups(labels, np.ones(len(labels), dtype=bool), batch_size)
    counts = np.bincount(groups)
    assert counts.min() > 0
    assert counts.min() >= min(batch_size, len(labels))
    members = [set(labels[groups == group].tolist()) for group in range(len(counts))]
    assert sum(len(found) for found in members) == len(set(labels.tolist()))  # no label is in two groups
    assert all(len(found) == 1 for found in members[1:])


def test_only_drawn_samples_count_for_the_size_of_a_group() -> None:
    labels = np.array([5, 5, 7, 7])
    groups = join_small_groups(labels, np.array([True, True, True, False]), 2)
    assert groups.tolist() == [0, 0, 0, 0]  # 7 alone would never fill a batch
    assert join_small_groups(labels, np.ones(4, dtype=bool), 2).tolist() == [0, 0, 1, 1]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=6), batch_size=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_no_draw_is_lost_or_repeated_and_every_batch_is_of_one_group(
    sizes: list[int], batch_size: int, seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    batcher = GroupBatcher(groups, batch_size)
    rng = np.random.default_rng(seed)
    shown = np.zeros(len(groups), dtype=np.int64)
    for epoch in range(5):
        batches = batcher.add(rng.permutation(len(groups)), seed, epoch)
        assert batches.shape[1] == batch_size
        for batch in batches:
            assert len(set(groups[batch].tolist())) == 1
            assert len(set(batch.tolist())) == batch_size  # not even across two epochs
        shown += np.bincount(batches.ravel(), minlength=len(groups))
        assert shown.sum() + batcher.num_waiting == (epoch + 1) * len(groups)
        # Every sample was drawn epoch + 1 times; at most one draw of it is waiting.
        assert set(shown.tolist()) <= {epoch, epoch + 1}


def test_a_new_draw_of_a_waiting_sample_comes_after_the_others() -> None:
    assert join_draws(np.array([7, 8]), np.array([8, 1, 7, 2, 3]), 4).tolist() == [7, 8, 1, 2, 8, 7, 3]
    assert join_draws(np.array([7]), np.array([7, 7]), 3).tolist() == [7, 7, 7]  # nothing else is left


def ring(count: int, width: int) -> np.ndarray:
    """Each sample's neighbours are the next ones on a ring."""
    return ((np.arange(count)[:, None] + np.arange(1, width + 1)) % count).astype(np.int32)


@settings(deadline=None)
@given(repeats=st.integers(1, 3), seed=st.integers(0, 1000), size=st.integers(2, 4))
def test_neighbour_batches_hold_the_same_draws(repeats: int, seed: int, size: int) -> None:
    draws = np.random.default_rng(seed).permutation(np.repeat(np.arange(24), repeats))
    batches = neighbour_batches(draws, ring(24, 4), size, 8)
    assert batches.shape == (3 * repeats, 8)
    np.testing.assert_array_equal(np.sort(batches, axis=None), np.sort(draws))
    np.testing.assert_array_equal(batches, neighbour_batches(draws, ring(24, 4), size, 8))


def test_neighbours_stand_together_far_more_often_than_by_chance() -> None:
    draws = np.random.default_rng(3).permutation(400)
    batches = neighbour_batches(draws, ring(400, 8), 4, 16)

    def close(batch: np.ndarray) -> float:
        gaps = np.abs(batch[:, None] - batch[None, :])
        return float((np.minimum(gaps, 400 - gaps) <= 8).mean())

    assert np.mean([close(batch) for batch in batches]) > 2 * np.mean([close(batch) for batch in draws.reshape(-1, 16)])


def test_the_first_draw_takes_its_nearest() -> None:
    batches = neighbour_batches(
        np.array([0, 3, 1, 2]), np.array([[2, 1], [0, 2], [0, 1], [0, 1]], dtype=np.int32), 2, 2
    )
    assert batches.tolist() == [[0, 2], [3, 1]]


def test_whole_batches_are_an_invariant() -> None:
    with pytest.raises(AssertionError, match="whole batches"):
        neighbour_batches(np.arange(5), ring(5, 2), 2, 2)
