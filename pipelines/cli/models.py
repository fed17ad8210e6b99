"""The command that changes a trained model: cut."""

from typing import Annotated

import typer

from pipelines.cli.app import app, show


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
