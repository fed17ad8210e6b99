"""Histograms of the pool's numbers, the kept rows apart from the dropped, with the thresholds of the rules drawn in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.page.chart import Bin, Line, histogram
from pipelines.report.facts import FACTS, Facts, Measure

_NUM_BINS = 40
# Fewer bars than this would be blocks.
_FEW = 4
# Rows that tell where the bulk of a column lies; drawn by hash.
_SAMPLE_ROWS = 200_000
_TAIL = 0.002
# Values that span more than this many times their median, all above zero, are drawn on a logarithmic axis.
_LOG_RATIO = 30.0


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A measure as a chart, and what the chart does not show."""

    title: str
    rules: tuple[str, ...]
    chart: Markup | None  # None where no row has a value
    num_rows: int
    num_null: int
    low: float | None
    high: float | None
    mean: float | None
    mean_kept: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class _Axis:
    low: float
    high: float
    num_bins: int
    is_log: bool


def draw_distributions(facts: Facts) -> list[Distribution]:
    """Return a chart of every measure, over the rows with a picture; those that rules compare come first, those without values are left out."""
    found = [_draw(facts, measure) for measure in facts.measures]
    return [each for each in found if each.chart is not None or each.rules]


def _draw(facts: Facts, measure: Measure) -> Distribution:
    column = measure.column
    ((num_rows, num_values, low, high, mean, mean_kept, is_whole),) = facts.query(
        f"SELECT count(*), count({column}), min({column}), max({column}), avg({column}), avg({column}) FILTER (kept), "
        f"bool_and({column} = round({column})) FROM (SELECT CASE WHEN isfinite({column}) THEN {column} END AS {column}, kept "
        f"FROM {FACTS} WHERE ok)"
    )
    chart, note = None, ""
    if num_values:
        axis = _choose_axis(facts, measure, low, high, bool(is_whole))
        bins = _count(facts, column, axis)
        lines = [Line(value=each.value, label=each.rule) for each in measure.thresholds]
        chart = histogram(
            bins, lines, title=f"Histogram of {measure.title}", is_log=axis.is_log, has_verdict=facts.choice is not None
        )
        note = "logarithmic axis" if axis.is_log else ""
    return Distribution(
        title=measure.title,
        rules=tuple(dict.fromkeys(each.rule for each in measure.thresholds)),
        chart=chart,
        num_rows=num_rows,
        num_null=num_rows - num_values,
        low=low,
        high=high,
        mean=mean,
        mean_kept=mean_kept if facts.choice else None,
        note=note,
    )


def _choose_axis(facts: Facts, measure: Measure, low: float, high: float, is_whole: bool) -> _Axis:
    """Return the ends of the axis: nearly all values, and every threshold, lie between them."""
    column = measure.column
    ((start, middle, end),) = facts.query(
        f"SELECT quantile_disc({column}, {_TAIL}), quantile_disc({column}, 0.5), quantile_disc({column}, {1 - _TAIL}) FROM "
        f"(SELECT {column} FROM {FACTS} WHERE ok AND isfinite({column}){_sample(facts)})"
    )
    if start is None:  # values are so rare that the sample has none
        start, middle, end = low, low, high
    thresholds = [each.value for each in measure.thresholds]
    first, last = min(start, *thresholds, end), max(start, *thresholds, end)
    is_log = low >= 0 and middle > 0 and last / middle > _LOG_RATIO and min(thresholds, default=1.0) > 0
    if is_log and first <= 0:  # what is zero goes to the first bar
        ((first,),) = facts.query(
            f"SELECT quantile_disc({column}, 0.01) FROM {FACTS} WHERE ok AND {column} > 0 AND isfinite({column}){_sample(facts)}"
        )
        first = min(first, *thresholds, middle)
    if is_whole and not is_log and last - first < 1.5 * _NUM_BINS:
        # A bar for each whole number, in the middle of it.
        first, last = math.floor(first) - 0.5, math.ceil(last) + 0.5
        if last - first < _FEW:
            first, last = first - 2, last + 2
        return _Axis(low=first, high=last, num_bins=round(last - first), is_log=False)
    if first == last:
        pad = abs(first) / 10 or 0.5
        return _Axis(low=first - pad, high=last + pad, num_bins=_NUM_BINS, is_log=False)
    if thresholds:
        # Room on both sides of a threshold at the end.
        pad = (last / first) ** (1 / 30) if is_log else (last - first) / 30
        if first == min(thresholds):
            first = first / pad if is_log else first - pad
        if last == max(thresholds):
            last = last * pad if is_log else last + pad
    return _Axis(low=first, high=last, num_bins=_NUM_BINS, is_log=is_log)


def _sample(facts: Facts) -> str:
    """Return the condition that leaves about `_SAMPLE_ROWS` rows."""
    share = _SAMPLE_ROWS / max(1, facts.num_rows)
    return "" if share >= 1 else f" AND hash < {int(share * (1 << 64))}::UBIGINT"


def _count(facts: Facts, column: str, axis: _Axis) -> list[Bin]:
    value, low, high = f"{column}::DOUBLE", f"{axis.low!r}::DOUBLE", f"{axis.high!r}::DOUBLE"
    if axis.is_log:
        value, low, high = f"ln(greatest({value}, {low}))", f"ln({low})", f"ln({high})"
    place = f"floor(({value} - {low}) / ({high} - {low}) * {axis.num_bins})"
    counted: Mapping[int, tuple[int, int]] = {
        int(number): (rows, kept)
        for number, rows, kept in facts.query(
            f"SELECT least({axis.num_bins - 1}, greatest(0, {place}))::INTEGER AS bin, count(*), count_if(kept) FROM {FACTS} "
            f"WHERE ok AND isfinite({column}) GROUP BY bin"
        )
    }
    edges = [_edge(axis, number) for number in range(axis.num_bins + 1)]
    return [
        Bin(low=edges[number], high=edges[number + 1], num_rows=rows, num_kept=kept)
        for number in range(axis.num_bins)
        for rows, kept in [counted.get(number, (0, 0))]
    ]


def _edge(axis: _Axis, number: int) -> float:
    share = number / axis.num_bins
    return axis.low * (axis.high / axis.low) ** share if axis.is_log else axis.low + (axis.high - axis.low) * share
