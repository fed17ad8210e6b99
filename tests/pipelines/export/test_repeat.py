"""Weights as repetitions: exact in expectation, the same for the same uid wherever it stands."""

import hashlib

import numpy as np
import pytest

from pipelines.export.repeat import UID_TYPE, Repeats, parse_uids, plan_repeats
from schemas.errors import InputError


def uids(count: int, *, counted: bool = False) -> list[str]:
    return [f"{n:032x}" if counted else hashlib.md5(str(n).encode()).hexdigest() for n in range(count)]


def test_uids_are_two_halves_the_high_one_first() -> None:
    text = "0123456789abcdeffedcba9876543210"
    (found,) = parse_uids([text]).tolist()
    assert found == (int(text[:16], 16), int(text[16:], 16))
    assert parse_uids([text]).dtype == UID_TYPE
    with pytest.raises(InputError, match="not 32 hex characters"):
        parse_uids([text, "ab"])


def test_equal_weights_mean_once_each_however_odd_they_are() -> None:
    plan = plan_repeats([np.full(3, 0.1), np.full(4, 0.1)])
    assert plan == Repeats(scale=0.0)
    assert plan.count(uids(7), np.full(7, 0.1)).tolist() == [1] * 7


def test_whole_multiples_come_out_whole_and_the_rest_one_way_or_the_other() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.7, 0.0])
    plan = plan_repeats([weights], 13)
    assert plan.count(uids(5), weights).tolist() == [1, 2, 3, 7, 0]
    counts = plan_repeats([weights], 20).count(uids(5), weights)
    wanted = weights * 20 / weights.sum()
    assert np.all((counts == np.floor(wanted)) | (counts == np.ceil(wanted)))


@pytest.mark.parametrize("counted", [False, True])
def test_the_expectation_is_met_for_any_kind_of_uid(counted: bool) -> None:
    names = uids(40_000, counted=counted)
    weights = np.tile([0.25, 0.5, 1.25], 40_000)[:40_000]
    plan = plan_repeats([weights], 40_000)
    counts = plan.count(names, weights)
    for weight in (0.25, 0.5, 1.25):
        expected = weight * plan.scale
        # Five standard errors of a coin with the fraction's probability.
        allowed = 5 * np.sqrt(0.25 / (weights == weight).sum())
        assert abs(counts[weights == weight].mean() - expected) < allowed


def test_order_and_company_do_not_matter() -> None:
    names, weights = uids(500), np.linspace(0.1, 3.0, 500)
    plan = plan_repeats([weights], 1000)
    backwards = plan.count(names[::-1], weights[::-1])[::-1]
    assert plan.count(names, weights).tolist() == backwards.tolist()
    assert plan.count(names[100:101], weights[100:101])[0] == backwards[100]


def test_weights_that_cannot_be_drawn_by_are_refused() -> None:
    for weights, message in (
        ([1.0, -0.5], "0 or more, got -0.5"),
        ([1.0, np.nan], "got nan"),
        ([0.0, 0.0], "every weight is 0"),
    ):
        with pytest.raises(InputError, match=message):
            plan_repeats([np.array(weights)])
    with pytest.raises(InputError, match="num_samples is -1"):
        plan_repeats([np.ones(2)], -1)
