import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import InputError
from train.curriculum import balance_weights, cap_rates, curriculum_share, keep_best
from train.ragged import Ragged
from train.sampler import sample_indices
from train.sampling import Curriculum

POSITIVE = arrays(np.float64, st.integers(1, 40), elements=st.floats(0.01, 100))


def test_shares_move_linearly_and_stay_at_the_end() -> None:
    growing = Curriculum(by="x", start=0.2, end=1.0, epochs=4)
    assert [curriculum_share(growing, epoch, 99) for epoch in (0, 1, 2, 4, 9)] == pytest.approx([0.2, 0.4, 0.6, 1, 1])
    shrinking = Curriculum(by="x", start=1.0, end=0.4)
    assert [curriculum_share(shrinking, epoch, 3) for epoch in (0, 1, 2)] == pytest.approx([1, 0.7, 0.4])
    assert curriculum_share(shrinking, 0, 1) == 0.4


@settings(deadline=None)
@given(scores=arrays(np.float32, st.integers(1, 60), elements=st.integers(0, 9)), share=st.floats(0.01, 1))
def test_the_best_share_of_weighted_samples_stays(scores: np.ndarray, share: float) -> None:
    weights = np.where(np.arange(len(scores)) % 4 == 3, 0.0, 1.0 + np.arange(len(scores)))
    kept = keep_best(weights, scores, share)
    drawn = weights > 0
    stays = kept > 0
    assert stays.sum() == max(1, round(share * drawn.sum()))
    np.testing.assert_array_equal(kept[stays], weights[stays])
    dropped = drawn & ~stays
    if dropped.any():
        assert scores[stays].min() >= scores[dropped].max()
    lowest = keep_best(weights, -scores, share, highest=False)
    np.testing.assert_array_equal(lowest, kept)


def test_equal_scores_are_told_apart_by_place() -> None:
    assert keep_best(np.ones(5), np.array([1, 2, 1, 1, 0], dtype=np.float32), 0.6).tolist() == [1, 1, 1, 0, 0]


@settings(deadline=None)
@given(weights=POSITIVE, seed=st.integers(0, 99), num_labels=st.integers(1, 5))
def test_power_one_gives_every_label_the_same_weight(weights: np.ndarray, seed: int, num_labels: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, num_labels, len(weights))
    lists = Ragged.of([[label] if label >= 0 else [] for label in labels.tolist()], np.int64, -1)
    balanced = balance_weights(weights, lists, 1.0)
    totals = [balanced[labels == label].sum() for label in np.unique(labels)]
    np.testing.assert_allclose(totals, totals[0])
    np.testing.assert_allclose(balance_weights(weights, lists, 0.0), weights)


def test_power_one_half_follows_the_root() -> None:
    labels = np.array([0] * 9 + [1] * 4)
    balanced = balance_weights(np.ones(13), Ragged.of(labels[:, None], np.int64, -1), 0.5)
    assert balanced[labels == 0].sum() / balanced[labels == 1].sum() == pytest.approx(3 / 2)


def test_a_sample_with_several_labels_counts_as_its_rarest() -> None:
    labels = Ragged.of([[0], [0, 1], [0, 0], []], np.int64, -1)
    # Label 0 is on three samples (once where it is repeated), label 1 on one, and one sample has none.
    assert balance_weights(np.ones(4), labels, 1.0) == pytest.approx([1 / 3, 1, 1 / 3, 1])


def test_samples_of_weight_zero_stay_out() -> None:
    assert balance_weights(np.array([0.0, 2.0]), Ragged.of([[0], [1]], np.int32, -1), 1.0).tolist() == [0, 1]


@settings(deadline=None)
@given(weights=POSITIVE, seed=st.integers(0, 99), share=st.floats(0.01, 1))
def test_capped_rates_add_up_and_never_exceed_the_cap(weights: np.ndarray, seed: int, share: float) -> None:
    most = np.random.default_rng(seed).integers(0, 5, len(weights))
    count = int(share * most.sum())
    if not count:
        return
    rates = cap_rates(weights, count, most, 0)
    assert rates.sum() == pytest.approx(count)
    assert (rates <= most * (1 + 1e-9)).all()
    open_ = (rates < most * (1 - 1e-9)) & (most > 0)
    if open_.any():  # in proportion where the cap does not bind
        ratios = rates[open_] / weights[open_]
        np.testing.assert_allclose(ratios, ratios[0])
    counts = np.bincount(sample_indices(rates, count, seed, 0, replacement=True), minlength=len(weights))
    assert (counts <= most).all()


def test_running_out_of_draws_is_an_error_with_the_remedy() -> None:
    with pytest.raises(
        InputError, match=r"epoch 7 needs 5 draws, and sampling.repetition.max_draws leaves 4; train fewer"
    ):
        cap_rates(np.array([1.0, 1.0, 0.0]), 5, np.array([2, 2, 9]), 7)
