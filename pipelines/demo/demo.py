"""The demo: a miniature web with known faults, curated by a filtering network, and two models that show whether it helped.

Everything goes through the functions that the command line calls. The web is made first, then every stage sees only its URL list and a
server; the planted truth is read once, at the end, by `pipelines.demo.compare`.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import RenderableType

from curate.catalog import Catalog
from curate.executor import Executor
from curate.select import SelectReport, select
from curate.store import Pool, Store
from pipelines.demo.compare import Comparison, CurvePoint, compare, mismatch_curve, read_truth
from pipelines.demo.curve import draw_curve
from pipelines.demo.heldback import CLASSES_FOLDER, RETRIEVAL_FOLDER, make_evaluation
from pipelines.demo.server import PREFERRED_PORT, listen, serve
from pipelines.demo.sheet import draw_sheet
from pipelines.demo.web import SITE_FILE, TRUSTED_FILE, URLS_FILE, WebConfig, make_web
from pipelines.recipe import EvaluateSection, OperatorCall, Recipe, load_recipe
from pipelines.report.report import ReportConfig
from pipelines.report.report import report as write_page
from pipelines.run import RunReport, run
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from schemas.selection import LEDGER_FILE

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
SHEET_FILE = "examples.png"
CURVE_FILE = "mismatched.png"
PAGE_FILE = "report.html"
_SETTINGS_FILE = "web/settings.json"
# Small enough to be quick, large enough that a recall of one point is three pictures.
_SCORE = "trusted.clip_score"  # the filtering network's, as the recipe `demo` labels it
_NUM_SCENES = 300
_IMAGES_PER_CLASS = 3

Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo found; `evaluation` maps the models "raw", "curated" and "trusted" to their metrics by evaluation set."""

    out: str
    selection: SelectReport
    comparison: Comparison
    mismatches: Sequence[CurvePoint]  # what the filtering network's score makes of mismatched captions
    evaluation: Mapping[str, Metrics]
    num_samples: Mapping[str, int]  # each model's dataset
    samples_seen: Mapping[str, int]  # each model's training
    seconds: Mapping[str, float]  # wall time by part
    report_file: str
    sheet_file: str
    curve_file: str
    page_file: str  # what `winnow report` makes of it


def demo(
    out: str = "demo-output",
    *,
    executor: Executor,
    progress: Progress | None = None,
    say: Callable[[RenderableType], None] = lambda _: None,
    scale: float = 1.0,
    port: int = PREFERRED_PORT,
) -> DemoReport:
    """Make the web, curate it, train on raw and on curated pairs with equal compute, and compare; goes on where it stopped.

    `scale` shrinks the web and the training alike. About 290 CPU seconds at full scale.
    """
    if not 0 < scale <= 10:
        raise InputError(f"demo scale is {scale}; it must be above 0 and at most 10")
    return _Demo(Store(out), executor, progress or SilentProgress(), say, scale).go(port)


class _Demo:
    """One call of `demo`."""

    def __init__(
        self, folder: Store, executor: Executor, progress: Progress, say: Callable[[RenderableType], None], scale: float
    ) -> None:
        self._folder = folder
        self._executor = executor
        self._progress = progress
        self._say = say
        self._scale = scale
        self._seconds: dict[str, float] = {}

    def go(self, port: int) -> DemoReport:
        folder = self._folder
        _check_settings(folder, self._scale)
        with listen(folder, port=port) as listener:
            with self._timed("make the web"):
                config = WebConfig().scaled(self._scale)
                make_web(folder, listener.addresses, config, progress=self._progress)
                make_evaluation(
                    folder,
                    num_scenes=max(50, round(_NUM_SCENES * min(1.0, self._scale))),
                    images_per_class=_IMAGES_PER_CLASS if self._scale >= 1 else 1,
                    seed=config.seed,
                    progress=self._progress,
                )
            with serve(listener, folder.locate(SITE_FILE), Path(folder.locate("web/server.log"))):
                recipes = {"trusted": self._prepare("demo-trusted", TRUSTED_FILE)}
                reports = {"trusted": self._run("trusted", recipes["trusted"], "trusted/pool")}
                curated = self._prepare("demo", URLS_FILE)
                recipes["curated"] = _with_scorer(curated, _find_model(reports["trusted"]))
                reports["curated"] = self._run("curated", recipes["curated"], "pool")
                recipes["raw"] = self._prepare("demo-raw", URLS_FILE)
                reports["raw"] = self._run("raw", recipes["raw"], "pool")
        with self._timed("compare"):
            return self._compare(recipes, reports)

    def _prepare(self, name: str, urls: str) -> Recipe:
        """Return a shipped recipe with this folder's paths, its training scaled."""
        recipe = load_recipe(name).with_input([self._folder.locate(urls)])
        assert recipe.train is not None
        train = replace(recipe.train, samples_seen=max(640, round(recipe.train.samples_seen * self._scale)))
        data = tuple(self._folder.locate(path) for path in (RETRIEVAL_FOLDER, CLASSES_FOLDER))
        return recipe.model_copy(update={"train": train, "evaluate": EvaluateSection(data=data)})

    def _run(self, title: str, recipe: Recipe, pool: str) -> RunReport:
        locate = self._folder.locate
        with self._timed(f"{title}: the whole recipe"):
            return run(
                recipe, locate(pool), locate(title), executor=self._executor, progress=self._progress, say=self._say
            )

    def _compare(self, recipes: Mapping[str, Recipe], reports: Mapping[str, RunReport]) -> DemoReport:
        pool = Pool(self._folder.locate("pool"))
        selections = {
            name: select(Pool(self._folder.locate("trusted/pool" if name == "trusted" else "pool")), recipe.select)
            for name, recipe in recipes.items()
            if recipe.select is not None
        }
        ledger = pool.read_table(f"{selections['curated'].folder}/{LEDGER_FILE}")
        truth = read_truth(self._folder)
        comparison = compare(truth, ledger)
        with Catalog(pool) as catalog:
            scores = dict(catalog.sql(f"SELECT uid, {_SCORE} FROM pool").fetchall())
        with self._folder.commit(SHEET_FILE) as file:
            file.write(draw_sheet(pool, ledger, [row.rule for row in selections["curated"].funnel], comparison))
        mismatches = mismatch_curve(truth, ledger, scores)
        with self._folder.commit(CURVE_FILE) as file:
            file.write(draw_curve(mismatches))
        self._write_page(pool, selections["curated"], reports)
        report = DemoReport(
            out=self._folder.root,
            selection=selections["curated"],
            comparison=comparison,
            mismatches=mismatches,
            evaluation={name: report.evaluation for name, report in reports.items()},
            num_samples={name: selection.num_kept for name, selection in selections.items()},
            samples_seen={name: recipe.train.samples_seen for name, recipe in recipes.items() if recipe.train},
            seconds=self._seconds,
            report_file=self._folder.locate(REPORT_FILE),
            sheet_file=self._folder.locate(SHEET_FILE),
            curve_file=self._folder.locate(CURVE_FILE),
            page_file=self._folder.locate(PAGE_FILE),
        )
        self._folder.commit_json(REPORT_FILE, describe_demo(report))
        return report

    def _write_page(self, pool: Pool, selection: SelectReport, reports: Mapping[str, RunReport]) -> None:
        """Write the page about the pool, the curated selection, and the three datasets and models."""
        config = ReportConfig(
            selection=selection.folder,
            datasets=tuple(report.dataset for report in reports.values()),
            runs=tuple(report.run for report in reports.values()),
        )
        write_page(pool, self._folder.locate(PAGE_FILE), config)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] = round(time.monotonic() - start, 1)
            logger.info("part=%r seconds=%.1f", part, self._seconds[part])


def describe_demo(report: DemoReport) -> dict[str, object]:
    """Return the report as JSON values."""
    found = report.comparison
    return {
        "funnel": [asdict(row) for row in report.selection.funnel],
        "num_kept": report.selection.num_kept,
        "precision": found.precision,
        "recall": found.recall,
        "kept_purity": found.kept_purity,
        "faults": [{**asdict(row), "dropped_share": row.dropped_share} for row in found.faults],
        "rules": [{**asdict(row), "precision": row.precision} for row in found.rules],
        "mismatches": [asdict(point) for point in report.mismatches],
        "evaluation": report.evaluation,
        "num_samples": report.num_samples,
        "samples_seen": report.samples_seen,
        "seconds": report.seconds,
    }


def _check_settings(folder: Store, scale: float) -> None:
    """Raise where the folder holds a demo of another size: its web would be taken for this one's."""
    settings = {"scale": scale}
    if not folder.exists(_SETTINGS_FILE):
        folder.commit_json(_SETTINGS_FILE, settings)
    elif (found := json.loads(folder.read_bytes(_SETTINGS_FILE))) != settings:
        raise InputError(f"{folder.root} holds a demo with {found}, not {settings}; give another folder with --out")


def _find_model(report: RunReport) -> str:
    from train.checkpoint import find_checkpoint

    return str(find_checkpoint(report.run))


def _with_scorer(recipe: Recipe, model: str) -> Recipe:
    """Return the recipe with `model` in place of the path that the shipped recipe names."""
    calls = [
        OperatorCall(name=call.name, parameters={**call.parameters, "model": model})
        if call.name == "clip_score"
        else call
        for call in recipe.annotate
    ]
    return recipe.model_copy(update={"annotate": tuple(calls)})
