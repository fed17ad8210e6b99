"""The commands of `winnow export`: a selection or a dataset in another tool's layout."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.app import AddressOption, JsonFlag, WorkersOption, app, make_executor, make_progress, show_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipelines.export.source import DatasetSource, Source
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
ShardSizeOption = Annotated[
    int, typer.Option("--shard-size", metavar="N", min=1, help="Most samples per file; files differ by at most one.")
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


@export_app.command("open-clip")
def open_clip(
    source: SourceArgument,
    out: OutFolder,
    shard_size: ShardSizeOption = 10_000,
    num_samples: NumSamplesOption = 0,
    weights: WeightsFlag = True,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write tars for open_clip, with every caption in the JSON. Prints the training command."""
    from pipelines.export.open_clip import export

    settings = {"shard_size": shard_size, "num_samples": num_samples, "is_weighted": weights}
    _run(export, _dataset(source, "open-clip"), out, settings, address, num_workers, as_json)


@export_app.command()
def energon(
    source: SourceArgument,
    out: OutFolder,
    shard_size: ShardSizeOption = 10_000,
    val_shards: Annotated[
        int, typer.Option("--val-shards", metavar="N", min=0, help="The last tars that are the split val.")
    ] = 0,
    num_samples: NumSamplesOption = 0,
    weights: WeightsFlag = True,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write tars for Megatron Energon, with .nv-meta and its index: nothing is left to prepare."""
    from pipelines.export.energon import export

    settings = {"shard_size": shard_size, "num_samples": num_samples, "is_weighted": weights, "val_shards": val_shards}
    _run(export, _dataset(source, "energon"), out, settings, address, num_workers, as_json)


@export_app.command()
def parquet(
    source: SourceArgument,
    out: OutFolder,
    shard_size: ShardSizeOption = 5_000,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write Parquet with the pictures in it. A row per sample: image, captions, uid, url, weight."""
    from pipelines.export.parquet import export

    _run(export, _dataset(source, "parquet"), out, {"shard_size": shard_size}, address, num_workers, as_json)


def _dataset(source: str, what: str) -> "DatasetSource":
    from pipelines.export.source import require_dataset

    return require_dataset(_open(source, ""), what)


def _run(
    export: "Callable[..., ExportReport]",
    source: "Source",
    out: str,
    settings: "Mapping[str, object]",
    address: str,
    num_workers: int,
    as_json: bool,
) -> None:
    with make_executor(address, num_workers) as executor:
        report = export(source, out, executor=executor, progress=make_progress(), **settings)
    _show(report, as_json)


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
