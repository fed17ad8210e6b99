"""The command that shows a pool in a web page."""

import signal
import threading
from dataclasses import replace
from typing import Annotated

import typer

from pipelines.cli.app import PoolOption, app, open_pool


@app.command()
def browse(
    pool: PoolOption,
    selection: Annotated[
        str, typer.Option("--selection", metavar="NAME", help="Show what it kept and dropped; its name, or its folder.")
    ] = "",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let --host be one that other machines reach.")
    ] = False,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let every user of this machine in.")] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Look through a pool in a web page: filter, sort, move thresholds, and keep, drop or flag by hand. Ends with Ctrl-C."""
    from pipelines.browse.access import Access
    from pipelines.browse.launch import browse as run

    access = Access(host=host, allow_remote=allow_remote)
    if no_token:
        access = replace(access, token="")
    opened = open_pool(pool)

    def announce(address: str) -> None:
        typer.echo(f"{address}\nCtrl-C ends it; decisions are kept in the pool as manual.decision")

    if threading.current_thread() is threading.main_thread():
        # Ended by a system, it has decisions to write and a process to end as well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(opened, access, port=port, selection=selection, is_opened=open_browser, announce=announce)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was decided is in the pool as manual.decision") from None
