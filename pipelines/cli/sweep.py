"""The command that tries thresholds: sweep."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.app import (
    REPEATABLE,
    AddressOption,
    JsonFlag,
    PoolOption,
    RecipeOption,
    SetOption,
    WorkersOption,
    app,
    make_executor,
    make_progress,
    open_pool,
    show,
    show_json,
)
from pipelines.cli.flags import SelectionFlags, choose_selection, read_rules, read_seeds
from schemas.errors import InputError

if TYPE_CHECKING:
    from curate.axis import Axis
    from curate.selection import Selection
    from curate.store import Pool
    from curate.sweep import SweepReport
    from pipelines.sweep_report import Scores
    from pipelines.sweep_training import TrainPointsConfig


ConditionArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONDITION", help="SQL with values in braces: 'clip_score > {0.2,0.25}', '... > {0.1:0.5:0.1}'."
    ),
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option("--rule", metavar="REASON=SQL", help=f"A rule that stays or, with braces, is varied{REPEATABLE}"),
]
TopOption = Annotated[
    list[str] | None,
    typer.Option("--top", metavar="SQL={SHARE,...}", help=f"Vary the best share by a score{REPEATABLE}"),
]
TopOfOption = Annotated[
    str,
    typer.Option("--top-of", metavar="rules|pool", help="Whose share: of what passes the rules that stay, or of all."),
]
SelectionOption = Annotated[
    str, typer.Option("--selection", metavar="NAME", help="A selection of the pool, in place of a recipe.")
]
NameOption = Annotated[str, typer.Option("--name", help="What the points' selections are called after.")]
ByOption = Annotated[
    list[str] | None,
    typer.Option("--by", metavar="SQL", help="Count its values. [default: source and language]"),
]
MeanOption = Annotated[
    list[str] | None, typer.Option("--mean", metavar="SQL", help="Average it. [default: the pool's scores]")
]
PlotOption = Annotated[str, typer.Option("--plot", metavar="FILE", help="Draw a PNG.")]
TableOption = Annotated[str, typer.Option("--table", metavar="FILE", help="Write a row per point: .parquet or .csv.")]
TrainOption = Annotated[str, typer.Option("--train", metavar="FILE|NAME", help="Train each point as this recipe says.")]
SamplesOption = Annotated[
    int, typer.Option("--samples-seen", metavar="N", min=0, help="Of every training; 0: as the recipe says.")
]
SeedsOption = Annotated[str, typer.Option("--seeds", metavar="N,N,...", help="Each point is trained with each.")]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", metavar="DIR", help=f"What each point is evaluated on{REPEATABLE}")
]
OutOption = Annotated[str, typer.Option("--out", metavar="DIR", help="Where the points' datasets and runs go.")]


@app.command()
def sweep(
    pool: PoolOption,
    conditions: ConditionArgument = None,
    rule: RuleOption = None,
    top: TopOption = None,
    top_of: TopOfOption = "",
    recipe: RecipeOption = "",
    selection: SelectionOption = "",
    overrides: SetOption = None,
    name: NameOption = "",
    by: ByOption = None,
    mean: MeanOption = None,
    plot: PlotOption = "",
    table: TableOption = "",
    train: TrainOption = "",
    samples_seen: SamplesOption = 0,
    seeds: SeedsOption = "0",
    data: DataOption = None,
    out: OutOption = "",
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Try thresholds and shares without selecting. Prints what each point keeps, its overlaps, and the command that selects it."""
    from curate.sweep import SweepConfig
    from curate.sweep import sweep as run
    from pipelines.cli.select_command import select_command
    from pipelines.sweep_report import describe_sweep, tabulate_sweep

    opened = open_pool(pool)
    _check_files(plot, table)
    fixed, axes = _read_axes(conditions or [], rule or [], top or [])
    base = _choose_base(opened, name, fixed, recipe, selection, overrides or [])
    of = top_of or (base.top.of if base.top else "rules")
    config = SweepConfig(axes=tuple(axes), base=base, top_of=of, shares=tuple(by or ()), means=tuple(mean or ()))
    training = _read_training(train, out, data or [], seeds, samples_seen)
    report = run(opened, config)
    commands = [
        select_command(pool, point.selection, recipe=recipe, overrides=overrides or []) for point in report.points
    ]
    scores = _train(opened, report, training, address, num_workers, is_quiet=as_json) if training else None
    _write_files(report, commands, plot, table, scores)
    if as_json:
        show_json(describe_sweep(report, commands, scores))
        return
    show(tabulate_sweep(report, scores))
    # Not through a table, which would break long lines.
    typer.echo("\n".join(["", "to make a selection of a point:", *commands, *filter(None, (table, plot))]))


def _read_axes(
    conditions: Sequence[str], rules: Sequence[str], tops: Sequence[str]
) -> "tuple[dict[str, str], list[Axis]]":
    """Return the rules that stay and what is varied, in the order given."""
    from curate.axis import is_varied, read_condition, read_fractions

    named = read_rules(rules)
    varied = {reason: sql for reason, sql in named.items() if is_varied(sql)}
    fixed = {reason: sql for reason, sql in named.items() if reason not in varied}
    axes = [read_condition(text) for text in conditions]
    axes += [read_condition(sql, reason) for reason, sql in varied.items()]
    return fixed, [*axes, *map(read_fractions, tops)]


def _choose_base(
    pool: "Pool", name: str, rules: dict[str, str], recipe: str, selection: str, overrides: Sequence[str]
) -> "Selection":
    """Return the selection whose other rules, cuts, weight and captions every point has."""
    from dataclasses import replace

    if recipe and selection:
        raise InputError("--recipe and --selection were both given; the points start from one of them")
    if selection:
        from curate.selection import read_selection
        from pipelines.why import find_selections

        found = find_selections(pool, selection)
        if len(found) > 1:
            raise InputError(f"{selection!r} means several selections; give one of: {', '.join(found)}")
        content = json.loads(pool.read_bytes(f"{found[0]}/selection.json"))
        base = read_selection(content)
        base = replace(base, name=name or base.name)
    else:
        base = choose_selection(name or ("" if recipe else "sweep"), SelectionFlags(), recipe, overrides)
    return replace(base, rules={**base.rules, **rules})


def _read_training(
    recipe: str, out: str, data: Sequence[str], seeds: str, samples_seen: int
) -> "TrainPointsConfig | None":
    given = {"--out": out, "--data": data, "--samples-seen": samples_seen}
    if not recipe:
        extra = next((flag for flag, value in given.items() if value), "")
        if extra:
            raise InputError(f"{extra} is about training; give --train RECIPE as well")
        return None
    from pipelines.sweep_training import TrainPointsConfig

    return TrainPointsConfig(
        recipe=recipe, out=out, data=tuple(data), seeds=read_seeds(seeds), samples_seen=samples_seen
    )


def _train(
    pool: "Pool",
    report: "SweepReport",
    config: "TrainPointsConfig",
    address: str,
    num_workers: int,
    *,
    is_quiet: bool,
) -> "Scores":
    from pipelines.sweep_training import train_points
    from train.trainer import TrainingStopped

    with make_executor(address, num_workers) as executor:
        try:
            _, scores = train_points(
                pool,
                report,
                config,
                executor=executor,
                progress=make_progress(),
                say=(lambda _: None) if is_quiet else show,
            )
        except TrainingStopped as error:
            raise KeyboardInterrupt(str(error)) from error
    return scores


def _check_files(plot: str, table: str) -> None:
    """Raise before anything is counted where a result could not be written."""
    if plot and Path(plot).suffix != ".png":
        raise InputError(f"--plot {plot} does not end in .png")
    if table and Path(table).suffix not in {".parquet", ".csv"}:
        raise InputError(f"--table {table} ends in neither .parquet nor .csv")
    for path in filter(None, (plot, table)):
        if not Path(path).absolute().parent.is_dir():
            raise InputError(
                f"folder {Path(path).parent} does not exist; make it, or write {Path(path).name} elsewhere"
            )


def _write_files(
    report: "SweepReport", commands: Sequence[str], plot: str, table: str, scores: "Scores | None"
) -> None:
    from pipelines.sweep_plot import draw_sweep
    from pipelines.sweep_report import write_table

    if table:
        write_table(report, commands, Path(table), scores)
    if plot:
        Path(plot).write_bytes(draw_sweep(report, scores))
