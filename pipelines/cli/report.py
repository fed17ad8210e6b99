"""The command that shows: report."""

from typing import Annotated

import typer

from pipelines.cli.app import REPEATABLE, JsonFlag, PoolOption, app, open_pool, show, show_json


@app.command()
def report(
    pool: PoolOption,
    selection: Annotated[
        str, typer.Option("--selection", metavar="NAME", help="A name or folder; needed where there are several.")
    ] = "",
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", metavar="DIR", help=f"A dataset to show{REPEATABLE}")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", metavar="DIR", help=f"A run to draw and compare{REPEATABLE}")
    ] = None,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The page.")] = "report.html",
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, max=24, help="Pictures in a row; 0: none.")
    ] = 6,
    picture_size: Annotated[
        int, typer.Option("--picture-size", metavar="PX", min=32, max=1024, help="Longest side of a picture.")
    ] = 224,
    max_megabytes: Annotated[
        int, typer.Option("--max-megabytes", metavar="N", min=1, help="Of all pictures of the page.")
    ] = 12,
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page about a pool, a selection, datasets and runs. It holds its pictures and needs no network."""
    from dataclasses import asdict
    from datetime import date

    from pipelines.report.album import Limits
    from pipelines.report.report import ReportConfig, describe_report
    from pipelines.report.report import report as make

    config = ReportConfig(
        selection=selection,
        datasets=tuple(dataset or ()),
        runs=tuple(run or ()),
        num_examples=examples,
        limits=Limits(picture_size=picture_size, num_bytes=max_megabytes << 20),
        date=date.today().isoformat(),
    )
    summary = make(open_pool(pool), out, config)
    show_json(asdict(summary)) if as_json else show(describe_report(summary))
