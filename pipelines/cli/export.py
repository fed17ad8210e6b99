"""The commands of `winnow export`: a selection or a dataset in another tool's layout."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.app import (
    REPEATABLE,
    AddressOption,
    JsonFlag,
    WorkersOption,
    app,
    make_executor,
    make_progress,
    show_json,
)
from schemas.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipelines.export.source import DatasetSource, SelectionSource, Source
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
ImageEmbeddingOption = Annotated[
    str,
    typer.Option(
        "--image-embedding", metavar="LABEL.COLUMN", help="The picture's vector; empty: the only one there is."
    ),
]
TextEmbeddingOption = Annotated[
    str,
    typer.Option(
        "--text-embedding", metavar="LABEL.COLUMN", help="The caption's vector; empty: the only one there is."
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


@export_app.command("clip-retrieval")
def clip_retrieval(
    source: SourceArgument,
    out: OutFolder,
    pool: PoolOption = "",
    image_embedding: ImageEmbeddingOption = "",
    text_embedding: TextEmbeddingOption = "",
    caption: Annotated[
        str, typer.Option("--caption", metavar="COLUMN", help="The text that the text embedding is of.")
    ] = "alt_text",
    shard_size: ShardSizeOption = 100_000,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write embeddings for clip-retrieval and autofaiss. img_emb, text_emb and metadata, row by row the same samples."""
    from pipelines.export.clip_retrieval import export

    settings = {
        "image_embedding": image_embedding,
        "text_embedding": text_embedding,
        "caption": caption,
        "shard_size": shard_size,
    }
    _run(export, _selection(source, pool, "clip-retrieval"), out, settings, address, num_workers, as_json)


@export_app.command()
def datacompdr(
    source: SourceArgument,
    out: OutFolder,
    pool: PoolOption,
    synthetic: Annotated[
        list[str],
        typer.Option(
            "--synthetic", metavar="CAPTION=EMBEDDING", help=f"A synthetic caption and its text embedding{REPEATABLE}"
        ),
    ],
    image_embedding: ImageEmbeddingOption = "",
    text_embedding: TextEmbeddingOption = "",
    crops: Annotated[
        str, typer.Option("--crops", metavar="LABEL", help="Crops that reinforce stored, in place of whole pictures.")
    ] = "",
    shard_size: ShardSizeOption = 10_000,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write DataCompDR's layout. Pictures with synthetic captions and a teacher's embeddings, from a dataset and its pool."""
    from pipelines.export.datacompdr import export

    pairs = {}
    for text in synthetic:
        caption, equals, embedding = text.partition("=")
        if not equals or not caption or not embedding or caption in pairs:
            raise InputError(
                f"--synthetic {text!r} is not CAPTION=EMBEDDING, each caption once; write "
                "--synthetic recap.recaption=recap_embedding.text_embedding"
            )
        pairs[caption] = embedding
    settings = {
        "selection": _selection(source, pool, "datacompdr"),
        "synthetic": pairs,
        "image_embedding": image_embedding,
        "text_embedding": text_embedding,
        "crops": crops,
        "shard_size": shard_size,
    }
    _run(export, _dataset(source, "datacompdr"), out, settings, address, num_workers, as_json)


@export_app.command()
def share(
    source: SourceArgument,
    out: OutFolder,
    pool: PoolOption = "",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="LABEL.COLUMN", help=f"A score to hand on; none: all that were selected by{REPEATABLE}"
        ),
    ] = None,
    shard_size: ShardSizeOption = 1_000_000,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write uids, URLs, hashes, captions and scores without pictures. Prints the command that fetches and rebuilds the set."""
    from pipelines.export.share import export

    settings = {"columns": tuple(columns or ()), "shard_size": shard_size}
    _run(export, _selection(source, pool, "share"), out, settings, address, num_workers, as_json)


@export_app.command("hugging-face")
def hugging_face(
    source: SourceArgument,
    out: OutFolder,
    shard_size: ShardSizeOption = 5_000,
    address: AddressOption = "",
    num_workers: WorkersOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write a folder for Hugging Face datasets. Parquet with the pictures in it, and a card that states every column's type."""
    from pipelines.export.hugging_face import export

    _run(export, _dataset(source, "hugging-face"), out, {"shard_size": shard_size}, address, num_workers, as_json)


@export_app.command()
def croissant(
    source: SourceArgument,
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="The file; empty: croissant.json in the dataset.")
    ] = "",
    pool: Annotated[str, typer.Option("--pool", metavar="DIR", help="Count licences in this pool anew.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Describe a dataset in Croissant. Files with digests, columns with meanings, as JSON-LD that mlcroissant reads."""
    from pipelines.export.croissant import CROISSANT_FILE, export

    dataset = _dataset(source, "croissant")
    _show(export(dataset, out or dataset.store.locate(CROISSANT_FILE), pool=pool), as_json)


@app.command()
def card(
    dataset: Annotated[str, typer.Argument(help="The dataset's folder.")],
    pool: Annotated[
        str, typer.Option("--pool", metavar="DIR", help="Count in the pool anew; without it, as counted at the build.")
    ] = "",
) -> None:
    """Print a dataset's card. Counts at each step, rules, models, languages, licences, opt-outs, known limits."""
    from pipelines.card import card as run

    typer.echo(run(dataset, pool), nl=False)


def _selection(source: str, pool: str, what: str) -> "SelectionSource":
    from pipelines.export.source import require_selection

    return require_selection(_open(source, pool), what, pool)


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
