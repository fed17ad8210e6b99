"""The miniature web's HTTP server: a process of its own that answers for several hosts, some slow, some strict, some closed to us.

    python -m pipelines.demo.server SITE.parquet FD FD ...      # listening sockets, one per host, inherited from the demo

It ends when its standard input does, so it cannot outlive the demo, however the demo ends.
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.store import Store
from schemas.errors import InputError

logger = logging.getLogger(__name__)

ADDRESSES_FILE = "web/addresses.json"
SITE_SCHEMA = pa.schema([
    pa.field("host", pa.int8()),  # position in Host
    pa.field("path", pa.string()),
    pa.field("status", pa.int16()),
    pa.field("location", pa.string()),
    pa.field("delay_seconds", pa.float32()),
    pa.field("cut_off", pa.bool_()),
    pa.field("body", pa.large_binary()),
])
PREFERRED_PORT = 8087
_MAX_REQUEST_BYTES = 16 * 1024
_IDLE_SECONDS = 30.0
# A rate limiter that has had enough of us: so many refusals, each asking to wait a second, then it relents.
_BUSY_REFUSALS = 5
_REASONS = {
    200: "OK",
    301: "Moved Permanently",
    302: "Found",
    403: "Forbidden",
    404: "Not Found",
    410: "Gone",
    429: "Too Many Requests",
}


class Host(StrEnum):
    """The hosts of the miniature web, each with its own address and robots.txt."""

    GALLERY = "gallery"
    PHOTOS = "photos"
    SHOP = "shop"
    JOURNAL = "journal"
    MIRROR = "mirror"
    SLOW = "slow"  # never answers in time
    BUSY = "busy"  # 429 with Retry-After at first
    OPTOUT = "optout"  # X-Robots-Tag: noai on every file
    PRIVATE = "private"  # robots.txt closes /members/
    TRUSTED = "trusted"


_ROBOTS = {Host.PRIVATE: "User-agent: *\nDisallow: /members/\n", Host.GALLERY: "User-agent: *\nDisallow: /admin/\n"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path answers."""

    status: int
    location: str
    delay_seconds: float
    cut_off: bool
    body: bytes


class Site:
    """The answers of every host by path."""

    def __init__(self, table: pa.Table) -> None:
        self._answers: dict[tuple[int, str], Answer] = {}
        self._num_refusals = 0
        columns = [table.column(name).to_pylist() for name in SITE_SCHEMA.names]
        for host, path, status, location, delay, cut_off, body in zip(*columns, strict=True):
            self._answers[host, path] = Answer(status, location, delay, cut_off, body)
        self._hosts = list(Host)

    def answer(self, host: int, path: str) -> tuple[Answer, dict[str, str]]:
        """Return the answer to a request and its extra headers."""
        name = self._hosts[host]
        if path == "/robots.txt":
            text = _ROBOTS.get(name)
            return Answer(200 if text else 404, "", 0.0, False, (text or "").encode()), {"Content-Type": "text/plain"}
        if name is Host.BUSY and self._num_refusals < _BUSY_REFUSALS:
            self._num_refusals += 1
            return Answer(429, "", 0.0, False, b""), {"Retry-After": "1"}
        found = self._answers.get((host, path)) or Answer(404, "", 0.0, False, b"")
        headers = {"Content-Type": "image/jpeg"}
        if found.location:
            headers["Location"] = found.location
        if name is Host.OPTOUT:
            headers["X-Robots-Tag"] = "noai, noimageai"
        return found, headers


@dataclass(frozen=True)
class Listener:
    """The hosts' sockets, bound but not yet answering, and the `address:port` of each host."""

    sockets: Sequence[socket.socket]
    addresses: Mapping[str, str]


@contextmanager
def listen(folder: Store, *, port: int = PREFERRED_PORT) -> Iterator[Listener]:
    """Bind every host's address while the block runs.

    They are chosen once per folder, so that a second run sees the same URLs: a loopback address for each host (127.87.0.N) where the
    system has those, or else a port for each. `port` 0 leaves the ports to the system.
    """
    sockets: list[socket.socket] = []
    try:
        if folder.exists(ADDRESSES_FILE):
            addresses: dict[str, str] = json.loads(folder.read_bytes(ADDRESSES_FILE))
            sockets.extend(_rebind(address, folder) for address in addresses.values())
        else:
            for position, _ in enumerate(Host):
                own = f"127.87.0.{position + 1}"
                sockets.append(_bind_first([(own, port), (own, 0), ("127.0.0.1", 0)]))
            names = ["{}:{}".format(*found.getsockname()) for found in sockets]
            addresses = dict(zip([host.value for host in Host], names, strict=True))
            folder.commit_json(ADDRESSES_FILE, addresses)
        yield Listener(sockets, addresses)
    finally:
        for found in sockets:
            found.close()


@contextmanager
def serve(listener: Listener, site_file: str, log_file: Path) -> Iterator[None]:
    """Answer in a process of its own while the block runs."""
    numbers = [found.fileno() for found in listener.sockets]
    command = [sys.executable, "-m", "pipelines.demo.server", site_file, *map(str, numbers)]
    # The pipe is never written to: its end tells the server that we are gone.
    with (
        log_file.open("ab") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, pass_fds=numbers) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


async def run(site: Site, sockets: list[socket.socket]) -> None:
    """Answer until standard input ends."""
    servers = [
        await asyncio.start_server(_Handler(site, host).handle, sock=found) for host, found in enumerate(sockets)
    ]
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(0, lambda: None if os.read(0, 1) else ended.set())
    await ended.wait()
    for server in servers:
        server.close()


class _Handler:
    """Reads requests of one host's connections and answers them in order, keeping connections open."""

    def __init__(self, site: Site, host: int) -> None:
        self._site = site
        self._host = host

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _IDLE_SECONDS)
        method, target = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        found, headers = self._site.answer(self._host, target.split("?")[0])
        if found.delay_seconds:
            # Wake up when the client hangs up: it never sends more before it has an answer.
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), found.delay_seconds)
            return False
        lines = [f"HTTP/1.1 {found.status} {_REASONS[found.status]}", f"Content-Length: {len(found.body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        body = found.body if method == "GET" else b""
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        writer.write(body[: len(body) // 2] if found.cut_off else body)
        await writer.drain()
        return not found.cut_off


def _rebind(address: str, folder: Store) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        return _bind(host, int(port))
    except OSError as error:
        raise InputError(
            f"{address}, an address of the demo's web in {folder.root}, is taken: {error}; "
            "end the process that has it, or start afresh with another --out"
        ) from error


def _bind_first(addresses: list[tuple[str, int]]) -> socket.socket:
    for host, port in addresses[:-1]:
        with suppress(OSError):
            return _bind(host, port)
    return _bind(*addresses[-1])


def _bind(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(512)
    except OSError:
        found.close()
        raise
    return found


def main(arguments: list[str]) -> None:
    """Serve the site file given first over the inherited sockets that follow."""
    site = Site(pq.read_table(arguments[0]))
    sockets = [socket.socket(fileno=int(number)) for number in arguments[1:]]
    for found in sockets:
        found.setblocking(False)
    asyncio.run(run(site, sockets))


if __name__ == "__main__":
    main(sys.argv[1:])
