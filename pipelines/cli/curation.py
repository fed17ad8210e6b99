"""The commands that make data: download, retry, import, annotate, operators, select, sql, build, status."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from curate.build import BuildConfig
from curate.fetch.config import DownloadConfig
from curate.fetch.importing import ImportConfig
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
from pipelines.cli.flags import SelectionFlags, choose_selection, stored_settings, with_settings
from schemas.errors import InputError

DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, why, and what it may take; write nothing.")
]
MixOption = Annotated[
    str, typer.Option("--mix", metavar="SQL=SOURCE:SHARE,...", help="Draw sources in these shares; others are dropped.")
]
MixCutFlag = Annotated[bool, typer.Option("--mix-cut", help="Reach the shares of --mix by dropping rows.")]


@app.command()
@with_settings(DownloadConfig)
def download(
    urls: Annotated[list[str], typer.Argument(metavar="URLS", help="Lists: paths, globs or fsspec URLs.")],
    pool: PoolOption,
    config: DownloadConfig,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
) -> None:
    """Fetch URL lists into a pool. Lists are Parquet, CSV, TSV, JSONL or txt; run again, it goes on where it stopped."""
    from curate.fetch.download import download as run
    from pipelines.render import tabulate_download

    with make_executor(address, num_workers) as executor:
        report = run(urls, open_pool(pool), config, executor=executor, progress=make_progress())
    show(tabulate_download(report))


@app.command()
@with_settings(DownloadConfig, fill=stored_settings)
def retry(
    pool: PoolOption, config: DownloadConfig, address: AddressOption = "", num_workers: WorkersOption = 0
) -> None:
    """Fetch temporary failures again. Those are 429, 5xx, timeouts and resets; all other rows stay as they are."""
    from curate.fetch.retry import retry as run
    from pipelines.render import tabulate_download

    with make_executor(address, num_workers) as executor:
        report = run(open_pool(pool), config, executor=executor, progress=make_progress())
    show(tabulate_download(report))


@app.command("import")
@with_settings(ImportConfig)
def import_dir(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="Tars, an image folder, or a Hugging Face datasets folder.")
    ],
    pool: PoolOption,
    config: ImportConfig,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
) -> None:
    """Bring existing data into a pool. Tars stay where they are; image folders and datasets are packed."""
    from curate.fetch.importing import import_dir as run
    from pipelines.render import tabulate_import

    with make_executor(address, num_workers) as executor:
        report = run(source, open_pool(pool), config, executor=executor, progress=make_progress())
    show(tabulate_import(report))


@app.command()
def annotate(
    operators: Annotated[
        list[str],
        typer.Argument(metavar="OP[:KEY=VALUE,...]", help="Operators, or .py files with one; see `winnow operators`."),
    ],
    pool: PoolOption,
    dry_run: DryRunFlag = False,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
) -> None:
    """Add the columns of operators to a pool. Each shard is read and decoded once for all of them."""
    from curate.annotate import annotate as run
    from curate.annotate import parse_operator
    from curate.outlook import preview
    from pipelines.outlook_report import tabulate_outlook
    from pipelines.render import tabulate_annotations

    parsed = [parse_operator(text) for text in operators]
    if dry_run:
        show(tabulate_outlook(preview(open_pool(pool), parsed), num_workers))
        return
    with make_executor(address, num_workers) as executor:
        report = run(open_pool(pool), parsed, executor=executor, progress=make_progress())
    show(tabulate_annotations(report))


@app.command()
def operators(as_json: JsonFlag = False) -> None:
    """List the operators. Shows what each reads and writes."""
    from curate.operator import discover
    from pipelines.render import describe_operators, tabulate_operators

    found = discover()
    show_json(describe_operators(found)) if as_json else show(tabulate_operators(found))


@app.command()
def select(
    pool: PoolOption,
    name: Annotated[str, typer.Option("--name", help="Of the selection; with --recipe its own name.")] = "",
    recipe: RecipeOption = "",
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="REASON=SQL", help=f"A condition of the rows to keep{REPEATABLE}"),
    ] = None,
    weight: Annotated[
        str, typer.Option("--weight", metavar="SQL", help="Relative draws per epoch. [default: 1.0]")
    ] = "",
    caption: Annotated[
        list[str] | None,
        typer.Option(
            "--caption", metavar="COLUMN=P", help="A caption column and its probability. [default: alt_text=1]"
        ),
    ] = None,
    top: Annotated[str, typer.Option("--top", metavar="SQL=SHARE", help="Keep the best share by a score.")] = "",
    per_group: Annotated[str, typer.Option("--per-group", metavar="SQL=N", help="Keep at most N of each group.")] = "",
    mix: MixOption = "",
    mix_cut: MixCutFlag = False,
    limit: Annotated[
        str, typer.Option("--limit", metavar="[SQL=]N", help="Keep at most N, by a score or at random.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of random choices in --limit, --mix-cut and --per-group.")] = 0,
    overrides: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose and weight rows by SQL. Prints the funnel and, last, the folder with the ledger of every row."""
    from curate.select import select as run
    from pipelines.render import describe_selection, tabulate_funnel

    flags = SelectionFlags(
        rules=rule or (),
        weight=weight,
        captions=caption or (),
        top=top,
        per_group=per_group,
        mix=mix,
        mix_cut=mix_cut,
        limit=limit,
        seed=seed,
    )
    selection = choose_selection(name, flags, recipe, overrides or [])
    opened = open_pool(pool)
    report = run(opened, selection, progress=make_progress())
    if as_json:
        show_json(describe_selection(report, opened))
        return
    show(tabulate_funnel(report))
    typer.echo(opened.locate(report.folder))


@app.command()
def sql(
    query: Annotated[
        str,
        typer.Argument(
            help="One SELECT over `pool`, `samples`, the labels, `ledger`, ...; DESCRIBE pool lists columns."
        ),
    ],
    pool: PoolOption,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--runs", metavar="DIR", help=f"Runs to ask about: a run, a folder of them, or an --out{REPEATABLE}"
        ),
    ] = None,
    as_json: JsonFlag = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[str, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file.")] = "",
) -> None:
    """Ask in SQL over samples, annotations, selections and runs. docs/sql.md lists the tables, and ten queries to begin with."""
    from pipelines.query import open_tables
    from pipelines.render import tabulate_rows, write_csv, write_json, write_parquet

    if as_json + as_csv + bool(parquet) > 1:
        raise InputError("--json, --csv and --parquet exclude each other; give one")
    # A query may fail while its rows are fetched: those errors are the user's to read as well.
    with open_tables(pool, runs or []) as tables, tables.translate():
        relation = tables.sql(query)
        if as_json:
            write_json(relation, sys.stdout)
        elif as_csv:
            write_csv(relation, sys.stdout)
        elif parquet:
            typer.echo(f"{write_parquet(relation, Path(parquet)):,} rows written to {parquet}")
        else:
            show(tabulate_rows(relation))


@app.command()
def why(
    sample: Annotated[str, typer.Argument(metavar="UID|URL", help="The sample; a URL may be that of several.")],
    pool: PoolOption,
    selection: Annotated[
        str, typer.Option("--selection", metavar="NAME", help="Only this one; without it, every selection.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Explain a sample: every score, rule and threshold, where it passed or failed, its copies, its captions, its weight."""
    from pipelines.explain import tabulate_explanation
    from pipelines.why import why as run

    found = run(open_pool(pool), sample, selection=selection)
    if as_json:
        show_json([explanation.to_dict() for explanation in found])
        return
    for explanation in found:
        show(tabulate_explanation(explanation))


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="SELECTION_A", help="Its name, or its folder.")],
    second: Annotated[str, typer.Argument(metavar="SELECTION_B", help="Its name, or its folder.")],
    pool: PoolOption,
    num_examples: Annotated[int, typer.Option("--num-examples", "-n", min=0, help="Rows to show of each side.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Compare two selections. Shows what only one of them keeps, which rules made the difference, and example rows."""
    from pipelines.diff import diff as run
    from pipelines.explain import tabulate_difference

    found = run(open_pool(pool), first, second, num_examples=num_examples)
    show_json(found.to_dict()) if as_json else show(tabulate_difference(found))


@app.command()
def extremes(
    value: Annotated[str, typer.Argument(help="SQL over `pool`: a column, or an expression of columns.")],
    pool: PoolOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The PNG to write.")] = Path("extremes.png"),
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Pictures at each end.")] = 20,
    where: Annotated[str, typer.Option("--where", metavar="SQL", help="Only rows for which this is true.")] = "true",
) -> None:
    """Draw a contact sheet of the pictures with the highest and the lowest values: look at a column before trusting it."""
    from pipelines.sheet import draw, find_extremes

    opened = open_pool(pool)
    picture = draw(find_extremes(opened, value, num_samples, where=where))
    _write_picture(out, picture)
    typer.echo(out)


@app.command()
def contamination(
    pool: PoolOption,
    against: Annotated[str, typer.Option("--against", metavar="DIR", help="The evaluation sets' pool.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The PNG to write.")] = Path("contamination.png"),
    label: Annotated[str, typer.Option("--label", help="Of the annotation by decontaminate.")] = "decontaminate",
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Pairs to draw.")] = 100,
) -> None:
    """Draw what decontaminate found: each picture beside the one of the evaluation set, those that differ most first."""
    from pipelines.sheet import draw, find_contaminated

    opened = open_pool(pool)
    picture = draw(find_contaminated(opened, open_pool(against), num_samples, label=label))
    _write_picture(out, picture)
    typer.echo(out)


@app.command()
@with_settings(BuildConfig)
def build(
    pool: PoolOption,
    selection: Annotated[
        str, typer.Option("--selection", metavar="NAME", help="Its name, or its folder where several have the name.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The dataset's folder is made in here.")],
    config: BuildConfig,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
) -> None:
    """Write a selection as a dataset. Tars with Parquet sidecars and index.json, or a view; prints its folder last."""
    from curate.build import build as run
    from pipelines.documents import make_documents
    from pipelines.render import describe_build

    with make_executor(address, num_workers) as executor:
        report = run(
            open_pool(pool),
            selection,
            out,
            config,
            executor=executor,
            progress=make_progress(),
            describe=make_documents,
        )
    show(describe_build(report))
    typer.echo(report.folder)


@app.command()
def status(pool: PoolOption, as_json: JsonFlag = False) -> None:
    """Show where a pool stands. Downloads and their errors, operators by shards done, cost so far, selections."""
    from pipelines.render import tabulate_status
    from pipelines.status import status as look

    found = look(open_pool(pool))
    typer.echo(found.to_json()) if as_json else show(tabulate_status(found))


def _write_picture(path: Path, data: bytes) -> None:
    """Write a PNG, whose folder is made as any other command makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
