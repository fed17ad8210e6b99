"""Thresholds in memory agree with SQL to the row: bounds, nulls, NaN, single precision."""

import math
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.catalog import Catalog
from pipelines.browse.numbers import Column, Numbers, Range
from schemas.errors import InputError
from tests.curate.pool_builder import annotate_shard, annotated_pool

VALUES = pa.schema([("single", pa.float32()), ("double", pa.float64()), ("whole", pa.int64()), ("text", pa.string())])
SINGLE = [0.1, 0.2, 0.3, 0.7, None, math.nan, -0.0, 1e-5, math.inf, 0.25, 3.0, -2.5]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    pool = annotated_pool(tmp_path / "pool", num_shards=2)
    for shard in pool.shards():
        columns = {"single": SINGLE, "double": SINGLE, "whole": [*range(11), None], "text": ["x"] * 12}
        annotate_shard(pool, shard, "odd", columns, VALUES, operator="odd")
    return Catalog(pool)


@pytest.fixture
def numbers(catalog: Catalog) -> Numbers:
    return Numbers(lambda: catalog, threading.RLock())


@pytest.mark.parametrize("column", ["odd.single", "odd.double", "odd.whole", "samples.width"])
@pytest.mark.parametrize(
    "bounds", ["0.1..", "..0.3", "0.2..0.7", "0.7..", "-1..1000", "0.00001..", "3..3", "1000000.."]
)
def test_a_range_is_its_rule(catalog: Catalog, numbers: Numbers, column: str, bounds: str) -> None:
    parsed = Range.parse(f"{column}:{bounds}")
    rows = catalog.sql(f"SELECT coalesce({parsed.to_sql()}, false) FROM pool ORDER BY shard, row").fetchall()
    assert numbers.load(column).within(parsed).tolist() == [value for (value,) in rows]


def test_without_bounds_every_row_is_in(numbers: Numbers) -> None:
    assert numbers.load("odd.single").within(Range.parse("odd.single:..")).all()


def test_only_numbers_are_offered(numbers: Numbers) -> None:
    assert {"odd.single", "odd.double", "odd.whole", "samples.width", "b32.clip_score"} <= set(numbers.names)
    assert not {"odd.text", "samples.shard", "samples.url", "odd.uid"} & set(numbers.names)
    with pytest.raises(InputError, match=r"no numeric column 'b32.clip_scor'; did you mean b32.clip_score"):
        numbers.load("b32.clip_scor")


def test_order_puts_what_has_no_value_last() -> None:
    column = Column(
        values=np.array([2.0, 0.0, math.nan, 1.0, 2.0]), valid=np.array([1, 0, 1, 1, 1], bool), is_integer=False
    )
    assert column.order(descending=False).tolist() == [3, 0, 4, 1, 2]
    assert column.order(descending=True).tolist() == [0, 4, 3, 1, 2]


def test_a_summary_counts_finite_values(numbers: Numbers) -> None:
    found = numbers.summarise("odd.single")
    assert (found.num_values, found.num_rows, sum(found.bins)) == (18, 24, 18)
    assert (found.least, found.most) == (-2.5, 3.0)
    whole = numbers.summarise("odd.whole")
    assert (whole.is_integer, whole.bins) == (True, (2,) * 11)


def test_a_few_large_values_do_not_stretch_the_scale(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool", num_shards=1, shard_size=2000)
    values = [float(number % 100) for number in range(1999)] + [1e9]
    annotate_shard(pool, 0, "skewed", {"value": values}, pa.schema([("value", pa.float64())]), operator="skewed")
    with Catalog(pool) as catalog:
        found = Numbers(lambda: catalog, threading.RLock()).summarise("skewed.value")
    assert (found.least, found.most, found.low, found.high) == (0.0, 1e9, 0.0, 99.0)
    assert sum(found.bins) == 2000


@pytest.mark.parametrize("text", ["clip_score", "a:1", "a:x..", ":1..2", "a:nan..", "a:1..inf", "a:1e..", "a:1..2..3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not COLUMN:LOW..HIGH"):
        Range.parse(text)


def test_odd_names_are_quoted_in_the_rule() -> None:
    parsed = Range.parse('samples.a"b: c:1..2.50')
    assert parsed.to_sql() == 'samples."a""b: c" >= 1 AND samples."a""b: c" <= 2.50'
