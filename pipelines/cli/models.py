"""The commands that write a trained model anew: cut, convert."""

from enum import StrEnum
from typing import Annotated

import typer

from pipelines.cli.app import app, show


class Layout(StrEnum):
    """Whose files a model lies in."""

    OPEN_CLIP = "open-clip"
    TRANSFORMERS = "transformers"


@app.command()
def cut(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run, a checkpoint, or a hub id.")],
    width: Annotated[int, typer.Option("--width", metavar="N", min=1, help="Numbers of an embedding that are left.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The new model's folder.")],
    revision: Annotated[str, typer.Option("--revision", help="The commit of a hub id.")] = "",
) -> None:
    """Cut a model's embedding to its first numbers, for which the loss `matryoshka` trains it; prints the new model's folder."""
    from train.cut import cut as run

    show(str(run(model, width, out, revision=revision)))


@app.command()
def convert(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a hub id; or open_clip's folder or checkpoint.")
    ],
    to: Annotated[Layout, typer.Option("--to", help="Whose layout the new folder has.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The new model's folder.")],
    revision: Annotated[str, typer.Option("--revision", help="The commit of a hub id.")] = "",
    config: Annotated[
        str,
        typer.Option("--config", metavar="NAME_OR_FILE", help="The shape of open_clip's checkpoint, like ViT-B-32."),
    ] = "",
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="DIR", help="The tokenizer of open_clip's model: a folder or hub id.")
    ] = "",
    tokenizer_revision: Annotated[str, typer.Option("--tokenizer-revision", help="The commit of its hub id.")] = "",
) -> None:
    """Write a CLIP with a ViT in open_clip's layout, or one of open_clip's as `transformers` and Winnow read it; prints the new model's folder."""
    from schemas.errors import InputError
    from train.open_clip import from_open_clip, to_open_clip

    if to is Layout.OPEN_CLIP:
        if config or tokenizer or tokenizer_revision:
            raise InputError(
                "--config and --tokenizer are about open_clip's checkpoints; here the model brings its own"
            )
        show(str(to_open_clip(model, out, revision=revision)))
        return
    if revision:
        raise InputError("--revision is a hub id's, and open_clip's model must be a folder or a file here")
    written = from_open_clip(model, out, config=config, tokenizer=tokenizer, tokenizer_revision=tokenizer_revision)
    show(str(written))
