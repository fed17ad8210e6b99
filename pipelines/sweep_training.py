"""Trains a model on every point of a sweep, all with the same seeds and the same number of samples seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curate.build import BuildConfig, build
from curate.executor import Executor
from curate.select import select
from curate.store import Pool, Store
from curate.sweep import SweepReport
from pipelines.compare import CompareConfig, compare
from pipelines.comparison import Comparison, main_metrics
from pipelines.recipe import load_recipe
from pipelines.sweep_report import Scores
from schemas.errors import InputError
from schemas.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TrainPointsConfig:
    """How each point is trained and judged; `recipe` has the sections train and evaluate, and may have build."""

    recipe: str
    out: str  # datasets, runs and the comparison are made in here
    data: tuple[str, ...] = ()  # what all points are evaluated on; empty: as the recipe says
    seeds: tuple[int, ...] = (0,)
    samples_seen: int = 0  # 0: as the recipe says

    def __post_init__(self) -> None:
        if not self.out:
            raise InputError("points that are trained need a folder for their datasets and runs; give --out DIR")


def train_points(
    pool: Pool,
    report: SweepReport,
    config: TrainPointsConfig,
    *,
    executor: Executor,
    progress: Progress,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Comparison, Scores]:
    """Select, build, train and evaluate every point; what is there already is not done again. Returns the main metrics by point too.

    Raises InputError where a point keeps no row, and as `compare` does.
    """
    empty = [point.selection.name for point in report.points if not point.num_kept]
    if empty:
        raise InputError(
            f"{', '.join(empty)} would keep no rows, and nothing can be trained on them; leave those values out"
        )
    settings = load_recipe(config.recipe).build or BuildConfig()
    datasets = Store(config.out).locate("datasets")
    folders = []
    for point in report.points:
        selection = select(pool, point.selection, progress=progress)
        built = build(pool, selection.folder, datasets, settings, executor=executor, progress=progress)
        folders.append(str(built.folder))
    compared = CompareConfig(
        sources=tuple(folders),
        recipe=config.recipe,
        data=config.data,
        seeds=config.seeds,
        samples_seen=config.samples_seen,
    )
    comparison = compare(compared, pool.root, config.out, executor=executor, progress=progress, say=say)
    return comparison, _scores(comparison, report, folders)


def _scores(comparison: Comparison, report: SweepReport, folders: Sequence[str]) -> Scores:
    found = comparison.scores()
    arms = [folder.rstrip("/").rsplit("/", 1)[-1] for folder in folders]
    return {
        point.selection.name: {
            f"{data} {metric}": found[data, metric][arm].mean for data, metric in main_metrics(found)
        }
        for point, arm in zip(report.points, arms, strict=True)
    }
