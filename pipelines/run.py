"""Runs a recipe: download, annotate, select, build, train, evaluate, each doing only what is not done yet.

Every stage finds out by content whether it is current, so a run may be stopped anywhere and started again, and a changed key costs exactly
the stages that depend on it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType

from curate.annotate import annotate
from curate.build import build, find_dataset, read_index
from curate.executor import Executor
from curate.fetch.download import download
from curate.fetch.ingest import find_plan
from curate.fingerprint import canonical_json
from curate.operator import Operator
from curate.outlook import preview
from curate.select import SelectReport, find_selection, select
from curate.selection import Selection
from curate.store import Pool, Store
from pipelines.documents import make_documents
from pipelines.evaluation import EVALUATION_FILE, Metrics, evaluate_run, find_evaluation
from pipelines.outlook_report import format_seconds, list_operators, list_totals
from pipelines.recipe import OWN_DATASET, EvaluateSection, Recipe
from pipelines.render import (
    UP_TO_DATE,
    describe_build,
    tabulate_annotations,
    tabulate_download,
    tabulate_evaluation,
    tabulate_funnel,
)
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from train.config import FREE_KEYS, LATER_KEYS, TrainConfig

STAGES = ("download", "annotate", "select", "build", "train", "evaluate")
RECIPE_FILE = "recipe.yaml"

Say = Callable[[RenderableType], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a stage would do, as `--dry-run` tells it."""

    stage: str
    is_current: bool
    text: str
    lines: tuple[str, ...] = ()  # the particulars


@dataclass(kw_only=True)
class RunReport:
    """What a run left; empty where the recipe has no such stage."""

    selection: str = ""  # folder
    dataset: str = ""  # folder
    run: str = ""  # folder
    evaluation: Metrics = field(default_factory=dict)
    current: tuple[str, ...] = ()  # stages that had nothing to do


def run(
    recipe: Recipe,
    pool: str,
    out: str,
    *,
    executor: Executor,
    progress: Progress | None = None,
    say: Say = lambda _: None,
) -> RunReport:
    """Run the stages of a recipe over the pool at `pool`; datasets and runs go below `out`. `say` receives a report per stage."""
    recipe.check_parameters()
    return _Run(recipe, Pool(pool), out, executor, progress or SilentProgress(), say).go()


def plan(recipe: Recipe, pool: str, out: str) -> list[Step]:
    """Return what `run` would do, stage by stage; writes nothing."""
    recipe.check_parameters()
    return list(_plan(recipe, Pool(pool), out))


class _Run:
    """One call of `run`."""

    def __init__(self, recipe: Recipe, pool: Pool, out: str, executor: Executor, progress: Progress, say: Say) -> None:
        self._recipe = recipe
        self._pool = pool
        self._out = Store(out)
        self._executor = executor
        self._progress = progress
        self._say = say
        self._report = RunReport()

    def go(self) -> RunReport:
        recipe = self._recipe
        recipe.check()
        self._out.require_folder()
        if recipe.train is not None and not self._out.is_local:
            raise InputError(f"{self._out.root} is not a local folder, and a run is written to one; give another --out")
        # A wrong parameter or path ends the run now, not after a download and a training of days.
        operators = [call.build() for call in recipe.annotate]
        _require_data(recipe)
        self._out.commit_bytes(RECIPE_FILE, recipe.to_yaml().encode())
        self._download()
        if operators:
            self._annotate(operators)
        if recipe.select is not None:
            selection = select(self._pool, recipe.select, progress=self._progress)
            self._report.selection = self._pool.locate(selection.folder)
            self._tell("select", selection.was_current, tabulate_funnel(selection), self._report.selection)
            if recipe.build is not None:
                self._build(selection)
        if recipe.train is not None:
            self._train(recipe.train)
        if recipe.evaluate is not None:
            self._evaluate(recipe.evaluate)
        return self._report

    def _download(self) -> None:
        urls = self._recipe.input.urls
        if not urls:
            _require_pool(self._pool)
            self._tell("download", True, "", f"the pool as it is, {len(self._pool.shards()):,} shards")
            return
        report = download(urls, self._pool, self._recipe.download, executor=self._executor, progress=self._progress)
        is_current = not report.num_shards_written
        self._tell("download", is_current, tabulate_download(report), f"{report.num_shards:,} shards")

    def _annotate(self, operators: Sequence[Operator]) -> None:
        report = annotate(self._pool, operators, executor=self._executor, progress=self._progress)
        is_current = not any(entry.num_shards for entry in report.operators)
        labels = ", ".join(entry.sql_name for entry in report.operators)
        self._tell("annotate", is_current, tabulate_annotations(report), labels)

    def _build(self, selection: SelectReport) -> None:
        assert self._recipe.build is not None
        report = build(
            self._pool,
            selection.folder,
            self._out.locate("datasets"),
            self._recipe.build,
            executor=self._executor,
            progress=self._progress,
            describe=make_documents,
        )
        self._report.dataset = str(report.folder)
        self._tell("build", not report.num_written, describe_build(report), self._report.dataset)

    def _train(self, config: TrainConfig) -> None:
        folder = run_folder(self._out, self._recipe.name, self._report.dataset, config)
        self._report.run = folder
        step, num_steps = training_steps(folder, self._report.dataset, config)
        if step >= num_steps:
            self._tell("train", True, "", folder)
            return
        from train.trainer import train

        report = train(self._report.dataset, folder, config, progress=self._progress)
        # The trainer notes its own settings when it starts; what stays is the recipe they came from.
        Store(folder).commit_bytes(RECIPE_FILE, self._recipe.to_yaml().encode())
        self._tell("train", False, f"step {report.step:,}, {report.samples_seen:,} samples seen", folder)

    def _evaluate(self, section: EvaluateSection) -> None:
        metrics, is_current = evaluate_run(self._report.run, section, self._report.dataset, progress=self._progress)
        self._report.evaluation = metrics
        # The numbers are what a run is for: shown even where they are not new.
        self._tell("evaluate", is_current, "", Store(self._report.run).locate(EVALUATION_FILE))
        self._say(tabulate_evaluation(metrics))

    def _tell(self, stage: str, is_current: bool, content: RenderableType, where: str) -> None:
        if is_current:
            self._report.current = (*self._report.current, stage)
            self._say(f"{stage}: {UP_TO_DATE} ({where})")
            return
        self._say(f"{stage}: done ({where})")
        if content:
            self._say(content)


def run_folder(out: Store, name: str, dataset: str, config: TrainConfig) -> str:
    """Return the folder of a training run: its name, and 12 characters that change with the dataset and with every setting that counts."""
    defaults = TrainConfig().to_dict()
    settings = {
        key: value
        for key, value in config.to_dict().items()
        if key not in FREE_KEYS and not (key in LATER_KEYS and value == defaults[key])
    }
    identity = {"dataset": read_index(Store(dataset)).fingerprint, "train": settings}
    return out.locate(f"runs/{name}-{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]}")


def training_steps(run: str, dataset: str, config: TrainConfig) -> tuple[int, int]:
    """Return the step of a run's newest checkpoint (0 where there is none), and the step it ends at; imports no torch."""
    index = read_index(Store(dataset))
    steps = config.num_steps((config.epoch_samples or index.num_samples) // config.batch_size)
    names = [name.removeprefix("step_") for name in Store(run).list_names("checkpoints") if name.startswith("step_")]
    return max((int(name) for name in names if name.isdigit()), default=0), steps


def _plan(recipe: Recipe, pool: Pool, out: str) -> Iterator[Step]:
    recipe.check()
    operators = [call.build() for call in recipe.annotate]
    _require_data(recipe)
    steps = {"download": _plan_download(recipe, pool)}
    yield steps["download"]
    if operators:
        steps["annotate"] = _plan_annotate(operators, pool, _count_coming(recipe, pool))
        yield steps["annotate"]
    is_ready = all(step.is_current for step in steps.values())
    if recipe.select is not None:
        selection = find_selection(pool, recipe.select) if is_ready else None
        text = (
            f"{UP_TO_DATE} ({pool.locate(selection.folder)})" if selection else _describe_rules(recipe.select, is_ready)
        )
        yield Step(stage="select", is_current=selection is not None, text=text)
        yield from _plan_models(recipe, pool, Store(out), selection)


def _plan_download(recipe: Recipe, pool: Pool) -> Step:
    if not recipe.input.urls:
        _require_pool(pool)
        return Step(
            stage="download", is_current=True, text=f"nothing to fetch, the pool has {len(pool.shards()):,} shards"
        )
    found = find_plan(recipe.input.urls, pool, recipe.download)
    if found is None:
        lists = ", ".join(recipe.input.urls)
        return Step(
            stage="download", is_current=False, text=f"read {lists} and fetch every URL that is not in the pool"
        )
    missing = len(set(found.shards) - set(pool.shards()))
    text = (
        f"{missing:,} of {found.num_shards:,} shards to fetch"
        if missing
        else f"{UP_TO_DATE} ({found.num_shards:,} shards)"
    )
    return Step(stage="download", is_current=not missing, text=text)


def _count_coming(recipe: Recipe, pool: Pool) -> tuple[int, int]:
    """Return the shards and rows that a planned download has still to bring; zeros where there is no plan yet."""
    found = find_plan(recipe.input.urls, pool, recipe.download) if recipe.input.urls else None
    if found is None:
        return 0, 0
    coming = sorted(set(found.shards) - set(pool.shards()))
    return len(coming), sum(map(found.shard_rows, coming))


def _plan_annotate(operators: Sequence[Operator], pool: Pool, coming: tuple[int, int]) -> Step:
    labels = [operator.sql_name for operator in operators]
    if not pool.shards():
        return Step(stage="annotate", is_current=False, text=f"every shard by {', '.join(labels)}")
    outlook = preview(pool, operators)
    lines = [*list_operators(outlook), *list_totals(outlook)]
    num_shards, num_rows = coming
    if num_shards:
        more = f"and {num_shards:,} shards of {num_rows:,} rows that are to be fetched first"
        if outlook.rows_per_second:
            more += f", about {format_seconds(num_rows / outlook.rows_per_second)} of work"
        lines.append(f"{more}; pool-wide operators will then compute every row again")
    todo = {entry.label: entry.num_todo for entry in outlook.operators if entry.num_todo}
    if not todo and not num_shards:
        return Step(stage="annotate", is_current=True, text=f"{UP_TO_DATE} ({', '.join(labels)})", lines=tuple(lines))
    parts = [f"{label} {count:,} of {outlook.num_shards:,} shards" for label, count in todo.items()]
    return Step(
        stage="annotate", is_current=False, text=f"to do: {', '.join(parts) or 'the new shards'}", lines=tuple(lines)
    )


def _describe_rules(selection: Selection, is_ready: bool) -> str:
    when = "" if is_ready else " once the stages before are done"
    return f"evaluate {len(selection.rules)} rules{when}: {', '.join(selection.rules) or 'none'}"


def _plan_models(recipe: Recipe, pool: Pool, out: Store, selection: SelectReport | None) -> Iterator[Step]:
    dataset = ""
    if recipe.build is not None:
        found = find_dataset(pool, selection.folder, out.locate("datasets"), recipe.build) if selection else None
        dataset = str(found) if found else ""
        yield Step(
            stage="build",
            is_current=bool(dataset),
            text=f"{UP_TO_DATE} ({dataset})" if dataset else "write the dataset",
        )
    run = ""
    if recipe.train is not None:
        run, step = _plan_train(recipe, out, dataset, recipe.train)
        yield step
    if recipe.evaluate is not None:
        is_current = bool(run) and find_evaluation(run, recipe.evaluate, dataset) is not None
        text = (
            f"{UP_TO_DATE} ({run}/{EVALUATION_FILE})"
            if is_current
            else f"evaluate on {', '.join(recipe.evaluate.data)}"
        )
        yield Step(stage="evaluate", is_current=is_current, text=text)


def _plan_train(recipe: Recipe, out: Store, dataset: str, config: TrainConfig) -> tuple[str, Step]:
    """Return the finished run's folder (empty where there is none) and what is to be done."""
    start = f"train {config.init or config.model}"
    if not dataset:
        return "", Step(stage="train", is_current=False, text=f"{start} on the dataset")
    run = run_folder(out, recipe.name, dataset, config)
    step, num_steps = training_steps(run, dataset, config)
    if step >= num_steps:
        return run, Step(stage="train", is_current=True, text=f"{UP_TO_DATE} ({run})")
    return "", Step(stage="train", is_current=False, text=f"{start}, from step {step:,} to {num_steps:,}, in {run}")


def _require_pool(pool: Pool) -> None:
    if not pool.shards():
        raise InputError(
            f"the recipe names no URL lists and {pool.root} has no shards; give lists with --input, or fill the pool with `winnow import`"
        )


def _require_data(recipe: Recipe) -> None:
    for entry in recipe.evaluate.data if recipe.evaluate else ():
        if entry != OWN_DATASET and not Store(entry).exists(""):
            raise InputError(
                f"evaluate.data: {entry} does not exist; give a dataset, a folder in CLIP_benchmark's layout, or `{OWN_DATASET}`"
            )
