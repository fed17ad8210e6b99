from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InputError
from train.ragged import Ragged
from train.sampler import effective_sample_size, sample_indices
from train.sampling import Balance, Batches, Curriculum, Repetition, SamplingConfig
from train.schedule import EpochShape, SampleValues, Schedule, describe_epoch

COUNT, BATCH = 60, 8
GROUPS = np.repeat(np.arange(4), [30, 15, 10, 5])
WEIGHTS = 1.0 + np.arange(COUNT) % 3
VALUES = SampleValues(
    columns={
        "curriculum": np.arange(COUNT, dtype=np.float32),
        "balance": Ragged.of(GROUPS[:, None], np.int64, -1),
        "batches": GROUPS,
        "report": GROUPS,
    }
)
NEAR = SampleValues(neighbours=((np.arange(COUNT)[:, None] + np.arange(1, 9)) % COUNT).astype(np.int32))
CONFIGS: dict[str, tuple[SamplingConfig, SampleValues]] = {
    "plain": (SamplingConfig(), VALUES),
    "curriculum": (SamplingConfig(curriculum=Curriculum(by="score", start=0.3, end=1.0)), VALUES),
    "repetition": (SamplingConfig(repetition=Repetition(decay=0.5, max_draws=9)), VALUES),
    "balance": (SamplingConfig(balance=Balance(by="source")), VALUES),
    "groups": (SamplingConfig(batches=Batches(by="source")), VALUES),
    "near": (SamplingConfig(batches=Batches(near="embedding", size=4)), NEAR),
    "all": (
        SamplingConfig(
            curriculum=Curriculum(by="score", start=1.0, end=0.8),
            repetition=Repetition(decay=0.9),
            balance=Balance(by="source", power=0.5),
            batches=Batches(by="source"),
        ),
        VALUES,
    ),
}
EVERY = pytest.mark.parametrize("name", list(CONFIGS))


def make(
    name: str, *, seed: int = 3, replacement: bool = True, weights: np.ndarray = WEIGHTS, **shape: Any
) -> Schedule:
    config, values = CONFIGS[name]
    settings = {"batch_size": BATCH, "epoch_samples": COUNT, "replacement": replacement, "seed": seed, "num_epochs": 6}
    return Schedule(weights, EpochShape(**{**settings, **shape}), config, values)


@EVERY
def test_epochs_have_whole_batches_and_differ(name: str) -> None:
    schedule = make(name)
    epochs = [schedule.batches(epoch) for epoch in range(3)]
    assert all(batches.shape == (COUNT // BATCH, BATCH) for batches in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


@EVERY
def test_a_schedule_that_starts_in_the_middle_shows_the_same(name: str) -> None:
    through = make(name)
    epochs = [through.batches(epoch).copy() for epoch in range(5)]
    np.testing.assert_array_equal(make(name).batches(4), epochs[4])
    back = make(name)
    for epoch in (3, 3, 1, 4, 0):
        np.testing.assert_array_equal(back.batches(epoch), epochs[epoch])


@EVERY
def test_another_seed_shows_another_order(name: str) -> None:
    assert not np.array_equal(make(name, seed=4).batches(0), make(name).batches(0))


@pytest.mark.parametrize("replacement", [True, False])
def test_without_settings_it_is_the_plain_sampler(*, replacement: bool) -> None:
    drawn = sample_indices(WEIGHTS, COUNT, 3, 2, replacement=replacement)
    np.testing.assert_array_equal(make("plain", replacement=replacement).batches(2).ravel(), drawn[:56])


def test_the_curriculum_widens_from_the_best() -> None:
    schedule = make("curriculum")
    lowest = [schedule.batches(epoch).min() for epoch in (0, 2, 5)]
    assert lowest[0] >= COUNT - 18  # 30 % of 60
    assert lowest[0] > lowest[1] > lowest[2]


@settings(deadline=None)
@given(seed=st.integers(0, 1000), most=st.integers(1, 3))
def test_no_sample_comes_more_often_than_its_cap(seed: int, most: int) -> None:
    config = SamplingConfig(repetition=Repetition(max_draws=most))
    shape = EpochShape(batch_size=8, epoch_samples=40, replacement=True, seed=seed)
    schedule = Schedule(10.0 ** (np.arange(60) % 4), shape, config, SampleValues())
    counts = np.zeros(60, dtype=np.int64)
    for epoch in range(60 * most // 40):
        counts += np.bincount(schedule.batches(epoch).ravel(), minlength=60)
        assert counts.max() <= most
    with pytest.raises(InputError, match="max_draws leaves"):
        for epoch in range(60 * most // 40, 60 * most // 40 + 2):
            schedule.batches(epoch)


def test_a_penalty_spreads_draws_over_more_samples() -> None:
    weights = np.where(np.arange(COUNT) < 6, 20.0, 1.0)
    shown = {}
    for name in ("plain", "repetition"):
        schedule = make(name, weights=weights, epoch_samples=16)
        drawn = np.concatenate([schedule.batches(epoch).ravel() for epoch in range(6)])
        shown[name] = len(np.unique(drawn))
    assert shown["repetition"] > 1.3 * shown["plain"]


def test_balance_makes_realised_rates_equal_over_epochs() -> None:
    schedule = make("balance", batch_size=4)
    drawn = np.concatenate([schedule.batches(epoch).ravel() for epoch in range(40)])
    shares = np.bincount(GROUPS[drawn]) / len(drawn)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


@pytest.mark.parametrize("name", ["groups", "all"])
def test_batches_of_groups_are_pure_but_for_small_groups(name: str) -> None:
    schedule = make(name)
    for epoch in range(6):
        for batch in schedule.batches(epoch):
            found = set(GROUPS[batch].tolist())
            assert len(found) == 1 or found <= {2, 3}  # the group of 5 joins that of 10


def test_batches_of_groups_keep_every_samples_rate() -> None:
    schedule = make("groups", weights=np.ones(COUNT), batch_size=5)
    counts = np.zeros(COUNT, dtype=np.int64)
    for epoch in range(5):
        counts += np.bincount(schedule.batches(epoch).ravel(), minlength=COUNT)
        assert counts.sum() == (epoch + 1) * COUNT
        assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("name", ["plain", "all"])
def test_factors_are_those_of_the_epoch(name: str) -> None:
    def factors(epoch: int) -> np.ndarray | None:
        return np.where(np.arange(COUNT) % 5 < epoch, 0.0, 1.0) if epoch else None

    config, values = CONFIGS[name]
    shape = EpochShape(batch_size=4, epoch_samples=COUNT, replacement=True, seed=1, num_epochs=4)
    through = Schedule(WEIGHTS, shape, config, values, factors)
    epochs = [through.batches(epoch).copy() for epoch in range(4)]
    assert set((epochs[0] % 5).ravel().tolist()) == set(range(5))
    np.testing.assert_array_equal(Schedule(WEIGHTS, shape, config, values, factors).batches(3), epochs[3])
    if name == "plain":  # batches of groups may show draws of the epoch before
        assert set((epochs[2] % 5).ravel().tolist()) == {2, 3, 4}


def test_an_epoch_is_described_by_its_draws() -> None:
    batches = np.array([[0, 0, 30, 31], [45, 46, 1, 2]])
    found = describe_epoch(batches, WEIGHTS, GROUPS)
    assert found == {
        "sampling/effective_sample_size": pytest.approx(effective_sample_size(WEIGHTS)),
        "sampling/num_distinct": 7.0,
        "sampling/share_0": 0.5,
        "sampling/share_1": 0.25,
        "sampling/share_2": 0.25,
    }
    named = describe_epoch(batches, WEIGHTS, np.where(GROUPS == 2, -1, GROUPS), ["web", "books"])
    assert [name for name in named if "share" in name] == [
        f"sampling/share_{name}" for name in ("web", "none", "books")
    ]
    assert list(describe_epoch(batches, WEIGHTS, None)) == ["sampling/effective_sample_size", "sampling/num_distinct"]
