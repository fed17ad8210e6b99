"""A finished comparison as files: a table of means with their spread and paired differences, all results, and a plot.

Differences are taken seed by seed between an arm and the first one, so that what a seed does to both cancels.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from curate.store import Store
from pipelines.dot_plot import Panel, draw_dots
from pipelines.evaluation import Metrics
from train.datacomp import find_task, summarise

RESULTS_FILE = "results.parquet"
JSON_FILE = "comparison.json"
MARKDOWN_FILE = "comparison.md"
PLOT_FILE = "comparison.svg"
AVERAGES = "DataComp"

# The numbers that stand for an evaluation set in the table and the plot; all others are in the Parquet and JSON files.
_MAIN = (
    "mean_recall@1",
    "acc1",
    "composition_mean",
    "probe_acc1",
    "attack_success_rate",
    "jaccard",
    "text_to_image_ndcg@10",
)
_SCHEMA = pa.schema([
    ("arm", pa.string()),
    ("seed", pa.int64()),
    ("data", pa.string()),
    ("metric", pa.string()),
    ("value", pa.float64()),
    ("chance", pa.float64()),
])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The metrics of an arm with a seed, by data set."""

    arm: str
    seed: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of an arm over the seeds: its mean and standard deviation, and those of the differences from the first arm, seed by seed."""

    values: tuple[float, ...]  # in the order of the seeds
    mean: float
    std: float  # 0 where there is one seed
    difference: float
    difference_std: float
    num_higher: int  # seeds with which the value is above the first arm's


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that was measured; `arms` tells in what each differs from the first."""

    arms: Mapping[str, Mapping[str, object]]
    seeds: Sequence[int]
    samples_seen: int
    cells: Sequence[Cell]

    def scores(self) -> dict[tuple[str, str], dict[str, Score]]:
        """Return the scores by data set and metric, and by arm; only metrics that every cell has."""
        values = {(cell.arm, cell.seed): _flat(cell.metrics) for cell in self.cells}
        shared = [key for key in next(iter(values.values())) if all(key in own for own in values.values())]
        first = next(iter(self.arms))
        scores = {}
        for key in shared:
            base = [values[first, seed][key] for seed in self.seeds]
            scores[key] = {arm: _score([values[arm, seed][key] for seed in self.seeds], base) for arm in self.arms}
        return scores


def write_comparison(comparison: Comparison, folder: Store) -> None:
    """Write the four files; the same results give the same bytes."""
    folder.commit_table(RESULTS_FILE, _tabulate(comparison))
    folder.commit_json(JSON_FILE, describe_comparison(comparison))
    folder.commit_bytes(MARKDOWN_FILE, format_markdown(comparison).encode())
    folder.commit_bytes(PLOT_FILE, draw_dots(_panels(comparison)).encode())


def describe_comparison(comparison: Comparison) -> dict[str, object]:
    """Return a comparison as JSON values."""
    return {
        "samples_seen": comparison.samples_seen,
        "seeds": list(comparison.seeds),
        "arms": [{"name": name, "differences": dict(own)} for name, own in comparison.arms.items()],
        "metrics": [
            {"data": data, "metric": metric, "arms": {arm: asdict(score) for arm, score in own.items()}}
            for (data, metric), own in comparison.scores().items()
            if not metric.startswith(("chance_", "num_"))
        ],
    }


def format_markdown(comparison: Comparison) -> str:
    """Return the table of the main metrics, in points of a hundred, and what the arms differ in."""
    arms = list(comparison.arms)
    lines = [
        f"# Comparison of {len(arms)} arms",
        "",
        f"Each was trained with the seeds {', '.join(map(str, comparison.seeds))} on {comparison.samples_seen:,} samples seen. Mean and standard "
        f"deviation over the seeds, in points; in brackets the difference from {_cell(arms[0])}, seed by seed, and with how many seeds it is higher.",
        "",
        f"| data | metric | {' | '.join(map(_cell, arms))} |",
        f"| --- | --- |{' ---: |' * len(arms)}",
    ]
    scores = comparison.scores()
    for data, metric in main_metrics(scores):
        shown = [_format_score(scores[data, metric][arm], is_first=arm == arms[0]) for arm in arms]
        lines.append(f"| {_cell(data)} | {_cell(metric)} | {' | '.join(shown)} |")
    lines += ["", "## What the arms differ in", ""]
    for name, own in comparison.arms.items():
        listed = ", ".join(f"`{key}: {_cell(str(value))}`" for key, value in own.items())
        lines.append(f"- {_cell(name)}: {listed or 'the first arm' if name == arms[0] else listed or 'nothing'}")
    return "\n".join([*lines, "", f"![a dot per seed]({PLOT_FILE})", ""])


def _flat(metrics: Metrics) -> dict[tuple[str, str], float]:
    flat = {(data, metric): value for data, own in metrics.items() for metric, value in own.items()}
    summary = summarise(metrics)
    for name, group in (summary.groups if summary else {}).items():
        found = group.num_tasks - len(group.missing)
        flat[AVERAGES, f"{name} ({found} of {group.num_tasks})" if group.missing else name] = group.mean
    return flat


def _score(values: Sequence[float], base: Sequence[float]) -> Score:
    differences = [value - other for value, other in zip(values, base, strict=True)]
    return Score(
        values=tuple(values),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
        difference=statistics.fmean(differences),
        difference_std=statistics.stdev(differences) if len(differences) > 1 else 0.0,
        num_higher=sum(difference > 0 for difference in differences),
    )


def main_metrics(scores: Mapping[tuple[str, str], object]) -> list[tuple[str, str]]:
    """Return the metrics that the table and the plot show: DataComp's of its tasks, the averages, and a few of any other set."""
    chosen = []
    for data, metric in scores:
        task = find_task(data)
        wanted = (task.metric, *_MAIN[2:5]) if task is not None else _MAIN
        if data == AVERAGES or metric in wanted:
            chosen.append((data, metric))
    return chosen


def _format_score(score: Score, *, is_first: bool) -> str:
    text = f"{100 * score.mean:.1f} +- {100 * score.std:.1f}"
    if is_first:
        return text
    return f"{text} ({100 * score.difference:+.1f} +- {100 * score.difference_std:.1f}, {score.num_higher} of {len(score.values)})"


def _cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _tabulate(comparison: Comparison) -> pa.Table:
    rows = []
    for cell in comparison.cells:
        own = _flat(cell.metrics)
        for (data, metric), value in own.items():
            if not metric.startswith("chance_"):
                place = {"arm": cell.arm, "seed": cell.seed, "data": data, "metric": metric}
                rows.append({**place, "value": value, "chance": own.get((data, f"chance_{metric}"))})
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _panels(comparison: Comparison) -> list[Panel]:
    scores = comparison.scores()
    return [
        Panel(title=f"{data} {metric}", rows={arm: score.values for arm, score in scores[data, metric].items()})
        for data, metric in main_metrics(scores)
    ]
