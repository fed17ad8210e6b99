"""The real server in a thread, and a client that is let in."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from curate.store import Pool
from pipelines.browse.access import Access, AccessControl
from pipelines.browse.launch import listen, url_of
from pipelines.browse.server import Site, make_app
from pipelines.browse.view import View


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers."""

    url: str  # with the token
    base: str
    access: Access
    view: View

    def client(self) -> httpx.Client:
        """Return a client with the cookie, which calls itself a page of the server."""
        cookies = httpx.get(self.url, timeout=60).raise_for_status().cookies
        return httpx.Client(base_url=self.base, headers={"origin": self.base}, cookies=cookies, timeout=60)


@contextmanager
def serve(
    pool: Pool, *, access: Access | None = None, selection: str = "", filter_seconds: float = 10.0
) -> Iterator[Served]:
    """Serve a pool on a free port until the block ends."""
    access = access or Access()
    with listen("127.0.0.1", 0) as listener:
        view = View(pool, filter_seconds=filter_seconds)
        port = int(listener.getsockname()[1])
        app = AccessControl(make_app(Site(view, selection=selection)), access, port)
        config = uvicorn.Config(app, access_log=False, log_config=None, lifespan="off", ws="none", server_header=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Served(url=url_of(access, port), base=f"http://127.0.0.1:{port}", access=access, view=view)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            view.close()
