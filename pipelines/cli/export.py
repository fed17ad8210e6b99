"""The commands of `winnow export`: a selection or a dataset in another tool's layout."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.app import JsonFlag, app, show_json

if TYPE_CHECKING:
    from pipelines.export.source import Source
    from pipelines.export.target import ExportReport

export_app = typer.Typer(
    no_args_is_help=True, help="Hand a selection or a dataset on in the layout that another tool reads."
)
app.add_typer(export_app, name="export")

SourceArgument = Annotated[
    str,
    typer.Argument(help="The folder of a dataset or of a selection, or with --pool a selection's name."),
]
OutFolder = Annotated[str, typer.Option("--out", metavar="DIR", help="The folder to make; a path or an fsspec URL.")]
PoolOption = Annotated[str, typer.Option("--pool", metavar="DIR", help="The pool that the selection lies in.")]
NumSamplesOption = Annotated[
    int,
    typer.Option(
        "--num-samples",
        metavar="N",
        min=0,
        help="About how many there are after weights have become repetitions; 0: as many as before.",
    ),
]
WeightsFlag = Annotated[
    bool,
    typer.Option("--weights/--no-weights", help="Repeat samples by their weights, or have each of them once."),
]


@export_app.command()
def datacomp(
    source: SourceArgument,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The .npy file to write.")],
    pool: PoolOption = "",
    num_samples: NumSamplesOption = 0,
    weights: WeightsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Write DataComp's subset file. Sorted uids for its resharder, repeated by weight."""
    from pipelines.export.datacomp import export

    _show(export(_open(source, pool), out, num_samples=num_samples, is_weighted=weights), as_json)


def _open(source: str, pool: str) -> "Source":
    from pipelines.export.source import open_source

    return open_source(source, pool)


def _show(report: "ExportReport", as_json: bool) -> None:
    from dataclasses import asdict

    from pipelines.export.render import describe_export

    if as_json:
        show_json(asdict(report))
        return
    typer.echo(describe_export(report))
    typer.echo(report.location)
