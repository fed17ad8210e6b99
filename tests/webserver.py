"""A real HTTP server on loopback with every misbehaviour the web is known for; it counts what it is asked.

    with WebServer() as server:
        server.add("/a.jpg", data)
        server.add("/busy.jpg", Route(data, statuses=(429, 200), headers={"Retry-After": "1"}))
        server.url("/a.jpg")                       # http://127.0.0.1:PORT/a.jpg
        server.url("/a.jpg", host="127.0.0.2")     # the same server under another name: another host to robots.txt and limits
        server.requests["/a.jpg"], server.max_concurrency["127.0.0.1"]

A path that was never added answers 404, robots.txt included. `serve_folder` serves a folder's files from a process of its own.
"""

import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

ANY_HOST = "*"


@dataclass(frozen=True)
class Route:
    """What a path answers; the defaults are a server that behaves."""

    body: bytes = b""
    statuses: tuple[int, ...] = (200,)  # of the first, second, ... request; the last one repeats
    headers: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the answer
    drip: float = 0.0  # seconds before each byte of the body
    hang: bool = False  # accept the request and say nothing until the server stops
    reset_after: int = -1  # send so many bytes of the body, then reset the connection
    drop_connections: int = 0  # close this many first requests without an answer
    declared_length: int = -1  # Content-Length, where it is to differ from the truth
    error_headers_only: bool = False  # send `headers` only with statuses other than 200


class WebServer:
    """A threaded server for any 127.x.x.x; a context manager."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Route] = {}
        self.requests: Counter[str] = Counter()  # by path
        self.host_requests: Counter[str] = Counter()  # by "host path"
        self.user_agents: set[str] = set()
        self.max_concurrency: Counter[str] = Counter()  # by host
        self.times: dict[str, list[float]] = {}  # arrival of each request, by path
        self.num_connections = 0
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = _Server(("0.0.0.0", 0), _Handler)
        self._server.site = self
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "WebServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Return the URL of a path."""
        return f"http://{host}:{self.port}{path}"

    def add(self, path: str, route: Route | bytes, host: str = ANY_HOST) -> str:
        """Serve a path and return its URL."""
        self.routes[host, path] = Route(route) if isinstance(route, bytes) else route
        return self.url(path, "127.0.0.1" if host == ANY_HOST else host)

    def redirect(self, path: str, location: str, *, status: int = 302, host: str = ANY_HOST) -> str:
        """Serve a redirect and return its URL."""
        return self.add(path, Route(statuses=(status,), headers={"Location": location}), host)

    def answer(self, handler: "_Handler") -> None:
        """Answer one request."""
        host = handler.headers.get("Host", "").rpartition(":")[0]
        path = handler.path
        with self._lock:
            count = self.requests[path]
            self.requests[path] += 1
            self.host_requests[f"{host} {path}"] += 1
            self.user_agents.add(handler.headers.get("User-Agent", ""))
            self.times.setdefault(path, []).append(time.monotonic())
            self._running[host] += 1
            self.max_concurrency[host] = max(self.max_concurrency[host], self._running[host])
        try:
            route = (
                self.routes.get((host, path)) or self.routes.get((ANY_HOST, path)) or Route(b"gone", statuses=(404,))
            )
            self._play(handler, route, count)
        except (ConnectionError, TimeoutError):  # the client has had enough
            handler.close_connection = True
        finally:
            with self._lock:
                self._running[host] -= 1

    def _play(self, handler: "_Handler", route: Route, count: int) -> None:
        if route.hang:
            self._stopped.wait()
            return
        self._stopped.wait(route.delay)
        if count < route.drop_connections:
            handler.close_connection = True
            return
        status = route.statuses[min(count, len(route.statuses) - 1)]
        body = route.body if 200 <= status < 300 else b"" if route.headers.get("Location") else b"no"
        length = route.declared_length if route.declared_length >= 0 else len(body)
        handler.send_response(status, HTTPStatus(status).phrase if status in set(HTTPStatus) else "Odd")
        if status != 200 or not route.error_headers_only:
            for name, values in route.headers.items():
                for value in (values,) if isinstance(values, str) else values:
                    handler.send_header(name, value)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        self._send_body(handler, route, body, length)

    def _send_body(self, handler: "_Handler", route: Route, body: bytes, length: int) -> None:
        if route.drip:
            for index in range(len(body)):
                if self._stopped.wait(route.drip):
                    return
                handler.wfile.write(body[index : index + 1])
                handler.wfile.flush()
            return
        handler.wfile.write(body if route.reset_after < 0 else body[: route.reset_after])
        if route.reset_after >= 0:
            handler.wfile.flush()
            # Linger of zero seconds: closing sends RST instead of FIN.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if route.reset_after >= 0 or length != len(body):
            handler.close_connection = True


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve the files of a folder from a process of its own, which outlives what is killed; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        match = re.search(r"port (\d+)", process.stdout.readline())
        assert match
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.kill()
        process.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    site: WebServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave; anything else is a fault of the test."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.site.num_connections += 1

    def do_GET(self) -> None:
        self.server.site.answer(self)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # reset by us or by the client
            return
