"""The command that takes pictures down."""

import sys
from typing import Annotated

import typer

from pipelines.cli.app import REPEATABLE, JsonFlag, PoolOption, app, make_progress, open_pool, show_json


@app.command()
def forget(
    pool: PoolOption,
    url: Annotated[list[str] | None, typer.Option("--url", metavar="URL", help=f"Of a picture{REPEATABLE}")] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", metavar="HOST", help=f"A host and its subdomains{REPEATABLE}")
    ] = None,
    sha256: Annotated[
        list[str] | None, typer.Option("--sha256", metavar="HEX", help=f"Of a file as it was downloaded{REPEATABLE}")
    ] = None,
    uid: Annotated[list[str] | None, typer.Option("--uid", metavar="UID", help=f"Of a sample{REPEATABLE}")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="DIR", help=f"A dataset or view, or a folder of them{REPEATABLE}"),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option("--cache", metavar="DIR", help=f"Of models' answers, or of the trainer's columns{REPEATABLE}"),
    ] = None,
    export: Annotated[
        list[str] | None, typer.Option("--export", metavar="PATH", help=f"What `winnow export` wrote{REPEATABLE}")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be touched, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take pictures down, for good. They leave the pool and what is named here, with a receipt, and are never fetched again."""
    from curate.forget import ForgetRequest, ForgetTargets
    from pipelines.forget import describe_forget
    from pipelines.forget import forget as run

    request = ForgetRequest(urls=url or (), domains=domain or (), sha256=sha256 or (), uids=uid or ())
    targets = ForgetTargets(datasets=tuple(dataset or ()), caches=tuple(cache or ()), exports=tuple(export or ()))
    opened = open_pool(pool)
    if not dry_run and not yes and sys.stdin.isatty():
        planned = run(opened, request, targets, is_dry=True, progress=make_progress())
        typer.echo(describe_forget(planned, is_dry=True), err=True)
        typer.confirm("This cannot be undone. Go on?", abort=True, err=True)
    report = run(opened, request, targets, is_dry=dry_run, progress=make_progress())
    if as_json:
        show_json(report.to_dict())
        return
    typer.echo(describe_forget(report, is_dry=dry_run))
    if report.receipt:
        typer.echo(opened.locate(report.receipt))
