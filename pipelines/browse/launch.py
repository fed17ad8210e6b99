"""Opens the pool, listens, and serves until it is told to stop."""

import socket
import threading
import webbrowser
from collections.abc import Callable
from urllib.parse import urlencode

import uvicorn

from curate.store import Pool
from pipelines.browse.access import TOKEN_PARAMETER, Access, AccessControl
from pipelines.browse.server import Site, make_app
from pipelines.browse.view import View
from pipelines.why import find_selections
from schemas.errors import InputError

_BACKLOG = 128
_STOP_SECONDS = 3


def browse(
    pool: Pool,
    access: Access,
    *,
    port: int = 0,
    selection: str = "",
    is_opened: bool = False,
    announce: Callable[[str], None],
) -> None:
    """Serve the page over a pool until Ctrl-C; `announce` is given its address, `is_opened` shows it in the user's browser.

    Raises InputError where the port is taken, or the pool has no shards or no such selection; KeyboardInterrupt at the end.
    """
    folder = find_selections(pool, selection)[-1].removeprefix("selections/") if selection else ""
    with listen(access.host, port) as listener:
        view = View(pool)
        try:
            number = int(listener.getsockname()[1])
            address = url_of(access, number)
            site = Site(view, selection=folder)
            app = AccessControl(make_app(site), access, number)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    access_log=False,
                    log_config=None,
                    lifespan="off",
                    ws="none",
                    server_header=False,
                    proxy_headers=False,
                    timeout_graceful_shutdown=_STOP_SECONDS,
                )
            )
            announce(address)
            if is_opened:
                # The kernel keeps its request until the server takes it.
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            site.pictures.warm(view.rows.shards)
            server.run(sockets=[listener])
            site.pictures.close()
        finally:
            view.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at a port, or at a free one for 0; raises InputError where that cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"--host {host} is not an address of this machine: {error}") from error
    # With the protocol named asyncio sends small answers at once; without it each waits 40 ms for the other side's acknowledgement.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen at {host}:{port}: {error.strerror}; give another --port, or none for a free one"
        ) from error
    return listener


def url_of(access: Access, port: int) -> str:
    """Return the address to open, with the token."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(access.host, access.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    query = f"?{urlencode({TOKEN_PARAMETER: access.token})}" if access.token else ""
    return f"http://{host}:{port}/{query}"
