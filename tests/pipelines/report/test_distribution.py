"""Histograms: every row is in one bar, axes suit the numbers, thresholds lie inside."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from curate.select import Selection, select
from pipelines.report.distribution import Distribution, draw_distributions
from pipelines.report.facts import Facts, load_choice
from tests.curate.pool_builder import annotate_shard
from tests.pool import FAILED_ROWS, make_pool

SIZE = 60
VALUES = pa.schema([("number", pa.float64())])
Draw = Callable[[Sequence[float | None], str], Distribution]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    def make(numbers: Sequence[float | None], rule: str) -> Distribution:
        pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=SIZE)
        annotate_shard(pool, 0, "it", {"number": list(numbers)}, VALUES)
        report = select(pool, Selection(name="mine", rules={"rule": rule}))
        with Facts(pool, load_choice(pool, report.folder)) as facts:
            return next(each for each in draw_distributions(facts) if each.title == "it.number")

    return make


def count_rows(found: Distribution) -> int:
    """Add up the rows of all bars; a bar of both colours tells its rows twice."""
    spans = set(re.findall(r"<title>(\S+ to \S+): ([\d,]+) rows", str(found.chart)))
    return sum(int(count.replace(",", "")) for _, count in spans)


@pytest.mark.parametrize(
    ("make", "is_log"),
    [
        (lambda row: row / SIZE, False),
        (lambda row: float(row % 7), False),
        (lambda row: 10.0 ** (row % 6), True),
        (lambda row: 0.0 if row < 5 else 10.0 ** (row % 6), True),
        (lambda row: -(10.0 ** (row % 6)), False),
        (lambda row: 3.0, False),
        (lambda row: 1e9 if row == 50 else row / SIZE, True),
    ],
)
def test_every_row_is_in_one_bar(draw: Draw, make: Callable[[int], float], is_log: bool) -> None:
    numbers = [make(row) if row not in FAILED_ROWS else None for row in range(SIZE)]
    found = draw(numbers, "number > 0.5")
    assert count_rows(found) == SIZE - len(FAILED_ROWS)
    assert (found.note == "logarithmic axis") == is_log
    assert found.rules == ("rule",)
    assert str(found.chart).count('class="threshold"') == 1


def test_nulls_and_what_is_not_finite_are_counted_apart(draw: Draw) -> None:
    numbers = [float(row) if row > 9 else None for row in range(SIZE)]
    numbers[10:13] = [float("nan"), float("inf"), float("-inf")]
    found = draw(numbers, "number < 20")
    # Rows 1 and 3 have no picture and are not counted at all.
    assert (found.num_rows, found.num_null) == (SIZE - 2, 10 - 2 + 3)
    assert (found.low, found.high) == (13, 59)
    assert count_rows(found) == 47
    assert found.mean_kept == pytest.approx(sum(range(13, 20)) / 7)


def test_a_threshold_far_away_is_inside(draw: Draw) -> None:
    chart = str(draw([row / SIZE for row in range(SIZE)], "number > 400").chart)
    (x,) = re.findall(r'class="threshold" x1="([\d.]+)"', chart)
    left, right = 44.0, 340.0
    assert left < float(x) < right
