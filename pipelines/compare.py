"""Compares recipes, datasets or settings fairly: every arm is trained with the same seeds on the same number of samples, and evaluated alike.

A cell of the grid is an arm with a seed. Its run is found by what decides it, so a comparison that was stopped, or to which an arm or a
seed was added, trains only what is missing.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from curate.executor import Executor
from curate.store import Store
from pipelines.comparison import Cell, Comparison, write_comparison
from pipelines.evaluation import Metrics, evaluate_run
from pipelines.recipe import OWN_DATASET, EvaluateSection, Recipe, has_section, load_recipe, load_section
from pipelines.run import run, run_folder, training_steps
from schemas.dataset import INDEX_FILE
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from train.config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared.

    CompareConfig(sources=("raw.yaml", "curated.yaml"), data=("eval",))                                    # recipes
    CompareConfig(sources=("datasets/a-0123456789ab",), recipe="mine.yaml",
                  vary=("train.losses={info_nce: 1}", "train.losses={siglip: 1}"))                         # one dataset, two losses
    """

    sources: tuple[str, ...]  # recipes by file or name, and folders of datasets
    vary: tuple[str, ...] = ()  # KEY=VALUE; a key given with several values is an axis of the grid
    overrides: tuple[str, ...] = ()  # KEY=VALUE, laid on every arm
    recipe: str = ""  # where folders of datasets take their sections `train` and `evaluate` from
    data: tuple[str, ...] = ()  # what all arms are evaluated on; empty: as their recipes say
    seeds: tuple[int, ...] = (0, 1, 2)
    samples_seen: int = 0  # of every arm; 0: as their recipes say, which must be alike

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("nothing to compare; name recipes or folders of datasets")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must be one or more different numbers, got {list(self.seeds)}")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One column of the comparison: a recipe, or a dataset with the settings of its training."""

    name: str
    settings: Mapping[str, object]  # every setting, flat; what arms differ in is found here
    train: TrainConfig
    evaluate: EvaluateSection
    recipe: Recipe | None = None
    dataset: str = ""  # folder; empty for a recipe
    differences: Mapping[str, object] = field(default_factory=dict)  # settings that are others than the first arm's


def compare(
    config: CompareConfig,
    pool: str,
    out: str,
    *,
    executor: Executor,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Train and evaluate every cell that is missing below `out`, and write the comparison there; recipes run over the pool at `pool`.

    Writes `comparison.json`, `comparison.md`, `comparison.svg` and `results.parquet`. Raises `InputError` where arms would see other numbers of samples,
    or be judged on other data, and where an arm's settings or what it is judged on cannot be: before the first is trained.
    """
    arms = make_arms(config)
    _check_arms(arms)
    folder = Store(out)
    bar = progress or SilentProgress()
    cells = []
    # Seed by seed: what is there after a stop can be compared already.
    for seed, arm in itertools.product(config.seeds, arms):
        metrics, is_current = _run_cell(arm, seed, pool, folder, executor, bar)
        say(f"{arm.name}, seed {seed}: {'up to date' if is_current else 'done'}")
        cells.append(Cell(arm=arm.name, seed=seed, metrics=metrics))
    comparison = Comparison(
        arms={arm.name: arm.differences for arm in arms},
        seeds=config.seeds,
        samples_seen=arms[0].train.samples_seen,
        cells=cells,
    )
    write_comparison(comparison, folder)
    return comparison


def make_arms(config: CompareConfig) -> list[Arm]:
    """Return the arms of the grid: every source with every combination of the varied settings, in the order given."""
    axes: dict[str, list[str]] = {}
    for assignment in config.vary:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(
                f"--vary {assignment!r} is not KEY=VALUE; write --vary train.lr=0.001 --vary train.lr=0.0001"
            )
        axes.setdefault(key.strip(), []).append(value.strip())
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    arms = [_make_arm(config, source, chosen) for source in config.sources for chosen in combinations]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"two arms would be called {twice!r}; give one of the sources another name, and each value once"
        )
    _check_fair(arms)
    first = arms[0].settings
    return [replace(arm, differences=_difference(first, arm.settings)) for arm in arms]


def _make_arm(config: CompareConfig, source: str, chosen: Mapping[str, str]) -> Arm:
    settings = [*config.overrides, *(f"{key}={value}" for key, value in chosen.items())]
    if config.samples_seen:
        settings.append(f"train.samples_seen={config.samples_seen}")
    suffix = "".join(f" {key.removeprefix('train.')}={value}" for key, value in chosen.items())
    if Store(source).exists(INDEX_FILE):
        return _make_dataset_arm(config, source, settings, suffix)
    recipe = load_recipe(source, settings)
    recipe.check_parameters()
    if recipe.train is None:
        raise InputError(f"recipe {source} has no section 'train', so there is no model to compare")
    evaluate = _with_data(recipe.evaluate, config, source)
    recipe = recipe.model_copy(update={"evaluate": evaluate})
    content = recipe.model_dump(mode="json", exclude={"name", "evaluate"})
    return Arm(
        name=f"{Path(source).stem}{suffix}",
        settings=_flatten(content),
        train=recipe.train or TrainConfig(),
        evaluate=evaluate,
        recipe=recipe,
    )


def _make_dataset_arm(config: CompareConfig, source: str, settings: Sequence[str], suffix: str) -> Arm:
    train = load_section("train", config.recipe, settings)
    assert isinstance(train, TrainConfig)
    section = None
    if config.recipe and has_section("evaluate", config.recipe):
        found = load_section("evaluate", config.recipe)
        assert isinstance(found, EvaluateSection)
        section = found
    return Arm(
        name=f"{source.rstrip('/').rsplit('/', 1)[-1]}{suffix}",
        settings=_flatten({"dataset": source, "train": train.to_dict()}),
        train=train,
        evaluate=_with_data(section, config, source),
        dataset=source,
    )


def _with_data(section: EvaluateSection | None, config: CompareConfig, source: str) -> EvaluateSection:
    if config.data:
        return replace(section, data=config.data) if section is not None else EvaluateSection(data=config.data)
    if section is None:
        raise InputError(f"{source} does not say what its models are evaluated on; give --data")
    return section


def _check_fair(arms: Sequence[Arm]) -> None:
    """Raise unless all arms see as many samples and are judged on the same data in the same way."""
    budgets = {arm.name: arm.train.samples_seen for arm in arms}
    if len(set(budgets.values())) > 1 or not all(budgets.values()):
        listed = ", ".join(f"{name}: {count or 'epochs of its own dataset'}" for name, count in budgets.items())
        raise InputError(f"the arms would see different numbers of samples ({listed}); give --samples-seen")
    for arm in arms:
        if OWN_DATASET in arm.evaluate.data:
            raise InputError(f"{arm.name} would be evaluated on its own dataset; give --data, the same for all arms")
        if arm.evaluate != arms[0].evaluate:
            raise InputError(
                f"{arm.name} and {arms[0].name} would be evaluated differently; give both the same `evaluate`"
            )


def _check_arms(arms: Sequence[Arm]) -> None:
    """Raise what would otherwise end the comparison when the first arms have been trained."""
    from train.evaluate.suite import expand, open_data
    from train.index import read_index
    from train.preflight import check_settings

    for arm in arms:
        try:
            check_settings(arm.train, 1)
        except InputError as error:
            raise InputError(f"{arm.name}: {error}") from error
        if arm.dataset:
            read_index(arm.dataset)
    for entry in arms[0].evaluate.data:
        for path in expand(entry):
            open_data(path, arms[0].evaluate)


def _run_cell(
    arm: Arm, seed: int, pool: str, out: Store, executor: Executor, progress: Progress
) -> tuple[Metrics, bool]:
    """Return a cell's metrics, and whether nothing had to be done for them."""
    config = replace(arm.train, seed=seed)
    if arm.recipe is not None:
        recipe = arm.recipe.model_copy(update={"train": config})
        report = run(recipe, pool, out.root, executor=executor, progress=progress)
        return report.evaluation, {"train", "evaluate"} <= set(report.current)
    name = arm.dataset.rstrip("/").rsplit("/", 1)[-1]
    folder = run_folder(out, name, arm.dataset, config)
    step, num_steps = training_steps(folder, arm.dataset, config)
    if step < num_steps:
        from train.trainer import train

        train(arm.dataset, folder, config, progress=progress)
    metrics, is_evaluated = evaluate_run(folder, arm.evaluate, arm.dataset, progress=progress)
    return metrics, step >= num_steps and is_evaluated


def _flatten(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one with dotted keys; `train.losses` is one setting, since a loss left out is one too."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in {"train.losses", "train.captions", "train.model_options"}:
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _difference(first: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    keys = dict.fromkeys([*first, *other])
    return {key: other.get(key) for key in keys if key != "train.seed" and first.get(key) != other.get(key)}
