"""Datasets and runs beside each other: what each dataset holds, curves of training, and the results of evaluations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from curate.store import Store
from pipelines.evaluation import EVALUATION_FILE, Metrics
from pipelines.page.chart import Series, curves
from schemas.dataset import INDEX_FILE
from schemas.errors import InputError
from train.datacomp import summarise

METRICS_FILE = "metrics.jsonl"
# A curve of more points than this is drawn through the means of neighbours.
_MAX_POINTS = 240
_CURVES = {"loss": "Training loss", "lr": "Learning rate", "logit_scale": "Logit scale"}
_GROUP = "DataComp average"
# Of other metrics, like the success of an attack, the highest is not marked as the best.
_HIGHER_IS_BETTER = ("recall", "acc", "f1", "jaccard", "composition", "Average")


@dataclass(frozen=True, kw_only=True)
class DatasetView:
    """What a dataset's index says."""

    name: str
    folder: str
    kind: str
    num_samples: int
    num_shards: int
    num_bytes: int
    selection: str
    captions: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: its points of training, and its results where it has been evaluated."""

    name: str
    folder: str
    points: Sequence[Mapping[str, float]]
    results: Metrics

    @property
    def samples_seen(self) -> int:
        """Samples that it has seen."""
        return int(self.points[-1].get("samples_seen", 0)) if self.points else 0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A curve of every run; `drawn` are the runs in it, in the order of their colours."""

    title: str
    svg: Markup
    drawn: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """A metric of a data set for every run: None where it has none; `best` are the runs with the highest value."""

    data: str
    metric: str
    values: tuple[float | None, ...]
    chance: float | None
    best: tuple[int, ...]
    is_main: bool


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything about datasets and runs."""

    datasets: tuple[DatasetView, ...]
    runs: tuple[Run, ...]
    charts: tuple[Chart, ...]
    results: tuple[ResultRow, ...]


def read_training(datasets: Sequence[str], runs: Sequence[str]) -> Training:
    """Read datasets and runs; raises InputError where a folder is none."""
    own = _name_apart([_read_run(folder) for folder in runs])
    charts = [chart for metric, title in _CURVES.items() for chart in [_draw(own, metric, title)] if chart is not None]
    return Training(
        datasets=tuple(_read_dataset(folder) for folder in datasets),
        runs=tuple(own),
        charts=tuple(charts),
        results=tuple(_compare(own)),
    )


def _read_dataset(folder: str) -> DatasetView:
    store = Store(folder.removesuffix(INDEX_FILE).rstrip("/") or ".")
    if not store.exists(INDEX_FILE):
        raise InputError(f"--dataset {folder!r} has no {INDEX_FILE}; give a folder that `winnow build` made")
    content = json.loads(store.read_bytes(INDEX_FILE))
    selection = content.get("selection") or {}
    fingerprint = str(selection.get("fingerprint", ""))[:12]
    return DatasetView(
        name=str(content.get("name", "")),
        folder=store.root,
        kind=str(content.get("kind", "")),
        num_samples=int(content["num_samples"]),
        num_shards=len(content["shards"]),
        num_bytes=sum(int(shard.get("tar_bytes") or 0) for shard in content["shards"]),
        selection="-".join(filter(None, [str(selection.get("name", "")), fingerprint])),
        captions=content.get("captions") or {},
    )


def _read_run(folder: str) -> Run:
    store = Store(folder.rstrip("/"))
    if not store.exists(METRICS_FILE):
        raise InputError(f"--run {folder!r} has no {METRICS_FILE}; give a folder that `winnow train` made")
    points = []
    for line in store.read_bytes(METRICS_FILE).decode().splitlines():
        try:
            points.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that a kill cut off; the run writes it again when it goes on
    results: Any = {}
    if store.exists(EVALUATION_FILE):
        results = json.loads(store.read_bytes(EVALUATION_FILE))["results"]
    return Run(name=store.root.rstrip("/").rpartition("/")[2], folder=store.root, points=points, results=results)


def _name_apart(runs: Sequence[Run]) -> list[Run]:
    """Give runs that share a name the names of their folders."""
    names = [run.name for run in runs]
    return [
        run
        if names.count(run.name) == 1
        else Run(name=run.folder, folder=run.folder, points=run.points, results=run.results)
        for run in runs
    ]


def _draw(runs: Sequence[Run], metric: str, title: str) -> Chart | None:
    series = []
    for run in runs:
        points = [
            (float(point["samples_seen"]), float(point[metric]))
            for point in run.points
            if point.get(metric) is not None and point.get("samples_seen") is not None and _is_finite(point[metric])
        ]
        if points:
            series.append(Series(name=run.name, points=_thin(points)))
    if not series:
        return None
    svg = curves(series, title=f"{title} by samples seen", x_title="samples seen")
    return Chart(title=title, svg=svg, drawn=tuple(each.name for each in series))


def _is_finite(value: float) -> bool:
    return float("-inf") < float(value) < float("inf")


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `_MAX_POINTS` points: means of neighbours."""
    size = -(-len(points) // _MAX_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _compare(runs: Sequence[Run]) -> list[ResultRow]:
    """Return a row per metric that any run has; the first metric of a data set is its main one."""
    tables = [_flatten(run.results) for run in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows: list[ResultRow] = []
    for data, metric in keys:
        if metric.startswith(("chance_", "num_")):
            continue
        values = tuple(table.get((data, metric)) for table in tables)
        chances = [table[data, f"chance_{metric}"] for table in tables if (data, f"chance_{metric}") in table]
        top = max(value for value in values if value is not None)
        is_judged = len(runs) > 1 and any(word in metric for word in _HIGHER_IS_BETTER)
        best = tuple(number for number, value in enumerate(values) if value == top) if is_judged else ()
        is_main = data not in {row.data for row in rows} or metric.startswith(("mean_recall", "composition_mean"))
        row = ResultRow(
            data=data,
            metric=metric,
            values=values,
            chance=chances[0] if chances else None,
            best=best if len(best) < len(runs) else (),
            is_main=is_main,
        )
        rows.append(row)
    return rows


def _flatten(results: Metrics) -> dict[tuple[str, str], float]:
    flat = {(data, metric): value for data, own in results.items() for metric, value in own.items()}
    summary = summarise(results)
    for name, group in (summary.groups if summary else {}).items():
        flat[_GROUP, name] = group.mean
    return flat
