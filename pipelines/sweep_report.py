"""A sweep for people, for programs, and as a table with a row per point."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
from rich.console import Group, RenderableType
from rich.markup import escape

from curate.store import Store
from curate.sweep import Point, SweepReport
from pipelines.render import cell, make_table
from schemas.errors import InputError

# Values of a column that a terminal shows, and points up to which it shows all overlaps.
_SHOWN_VALUES = 3
_SHOWN_OVERLAPS = 12
_DIGITS = 6

Scores = Mapping[str, Mapping[str, float]]  # point: metric: mean over the seeds


def tabulate_sweep(report: SweepReport, scores: Scores | None = None) -> RenderableType:
    """Return the points as a table, and their overlaps where there are not too many."""
    note = f"{report.num_candidates:,} of {report.num_rows:,} rows pass the rules that stay ({report.num_downloaded:,} were downloaded)"
    parts: list[RenderableType] = [_tabulate_points(report, scores or {}), note]
    if 1 < len(report.points) <= _SHOWN_OVERLAPS:
        parts += ["", _tabulate_overlaps(report)]
    return Group(*parts)


def describe_sweep(report: SweepReport, commands: Sequence[str], scores: Scores | None = None) -> dict[str, object]:
    """Return a sweep as JSON values; `jaccard` and `containment` are matrices in the order of the points."""
    numbers = range(len(report.points))
    return {
        "num_rows": report.num_rows,
        "num_downloaded": report.num_downloaded,
        "num_candidates": report.num_candidates,
        "points": [
            {
                "name": point.selection.name,
                "values": dict(point.values),
                "rules": dict(point.selection.rules),
                "num_kept": point.num_kept,
                "share": _share(report, point),
                "effective_samples": _round(point.effective_samples),
                "means": {name: _round(mean) for name, mean in point.means.items()},
                "counts": {name: dict(counts) for name, counts in point.counts.items()},
                "command": command,
                **({"scores": dict(scores[point.selection.name])} if scores else {}),
            }
            for point, command in zip(report.points, commands, strict=True)
        ],
        "jaccard": [[_round(report.jaccard(a, b)) for b in numbers] for a in numbers],
        "containment": [[_round(report.containment(a, b)) for b in numbers] for a in numbers],
    }


def write_table(report: SweepReport, commands: Sequence[str], path: Path, scores: Scores | None = None) -> None:
    """Write a row per point as Parquet or CSV, as the file's ending says."""
    if path.suffix not in {".parquet", ".csv"}:
        raise InputError(f"--table {path} ends in neither .parquet nor .csv")
    table = make_points_table(report, commands, scores)
    store = Store(path.parent)
    if path.suffix == ".parquet":
        store.commit_table(path.name, table)
        return
    with store.commit(path.name) as file:
        pyarrow.csv.write_csv(table, file)


def make_points_table(report: SweepReport, commands: Sequence[str], scores: Scores | None = None) -> pa.Table:
    """Return a row per point: what is varied, counts, means, the share of every value, the overlap with every point, its command."""
    points = report.points
    columns: dict[str, list[object]] = {"point": [point.selection.name for point in points]}
    for title in points[0].values:
        columns[title] = _numbers([point.values[title] for point in points])
    columns["num_kept"] = [point.num_kept for point in points]
    columns["share"] = [_share(report, point) for point in points]
    columns["effective_samples"] = [_round(point.effective_samples) for point in points]
    for name in points[0].means:
        columns[f"mean {name}"] = [_round(point.means[name]) for point in points]
    for name, counts in points[0].counts.items():
        for value in counts:
            columns[f"share {name} = {value}"] = [_round(point.shares(name).get(value)) for point in points]
    for metric in next(iter(scores.values())) if scores else ():
        columns[f"score {metric}"] = [_round((scores or {})[point.selection.name][metric]) for point in points]
    for number, other in enumerate(points):
        columns[f"jaccard {other.selection.name}"] = [_round(report.jaccard(own, number)) for own in range(len(points))]
    columns["command"] = list(commands)
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def most_frequent(report: SweepReport, column: str, count: int) -> list[str]:
    """Return the values of a column that the points keep most of, together."""
    totals: dict[str, int] = {}
    for point in report.points:
        for value, rows in point.counts[column].items():
            totals[value] = totals.get(value, 0) + rows
    return sorted((value for value in totals if totals[value]), key=lambda value: (-totals[value], value))[:count]


def _tabulate_points(report: SweepReport, scores: Scores) -> RenderableType:
    points = report.points
    shown = {name: most_frequent(report, name, _SHOWN_VALUES) for name in points[0].counts}
    is_weighted = any(point.effective_samples != point.num_kept for point in points)
    metrics = list(next(iter(scores.values()))) if scores else []
    heads = ["kept", "share", *(["effective"] if is_weighted else []), *(f"mean {name}" for name in points[0].means)]
    heads += [f"{name.rpartition('.')[2]} {value}" for name, values in shown.items() for value in values]
    table = make_table("", *map(escape, points[0].values), right=tuple(map(escape, [*heads, *metrics])))
    for column in table.columns:
        column.no_wrap = False
    for number, point in enumerate(points, start=1):
        row = [f"{point.num_kept:,}", f"{_share(report, point):.1%}"]
        if is_weighted:
            row.append("" if point.effective_samples is None else f"{point.effective_samples:,.1f}")
        row += [cell(_round(mean)) for mean in point.means.values()]
        row += [f"{point.shares(name).get(value, 0.0):.1%}" for name, values in shown.items() for value in values]
        row += [f"{scores[point.selection.name][metric]:.4f}" for metric in metrics]
        table.add_row(str(number), *map(escape, point.values.values()), *row)
    return table


def _tabulate_overlaps(report: SweepReport) -> RenderableType:
    numbers = range(len(report.points))
    table = make_table("rows in both / in either", right=tuple(str(number + 1) for number in numbers))
    for first in numbers:
        table.add_row(str(first + 1), *(f"{report.jaccard(first, second):.2f}" for second in numbers))
    return table


def _share(report: SweepReport, point: Point) -> float:
    return point.num_kept / report.num_rows


def _round(value: float | None) -> float | None:
    """Return a value without the digits that the order of a sum decides."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}") if abs(value) < 10**_DIGITS else round(value, 1)


def _numbers(values: Sequence[str]) -> list[object]:
    """Return values as numbers where all of them are."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return list(values)
