"""HTTP/1.1 over asyncio: connections that are kept, one request at a time on each.

A general client does much that a fetcher of pictures has no use for (cookies, sessions, redirects, tracing), and takes twice as long over
each request.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

import aiohappyeyeballs

from curate.fetch.addresses import Target
from curate.fetch.errors import PermanentError
from curate.fetch.response import Choose, ResponseReader

_KEEPALIVE_SECONDS = 15.0
# The next address of a host is tried when the one before has not answered for so long (RFC 8305).
_HAPPY_EYEBALLS_SECONDS = 0.25

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class Connections:
    """The connections of one event loop; `resolve` gives the addresses of a host, and refuses those that must not be connected to."""

    def __init__(self, resolve: Resolve, headers: Sequence[tuple[str, str]]) -> None:
        self._resolve = resolve
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers).encode() + b"\r\n"
        self._idle: dict[str, list[_Connection]] = {}  # by origin, the last used at the end
        self._open: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        """Close every connection."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.close()

    async def get(self, target: Target, choose: Choose) -> ResponseReader:
        """Request a URL and return what came, whole or not; raises OSError or FetchError where no connection could be made."""
        request = _first_lines(target) + self._headers
        while True:
            connection = self._take(target.origin)
            is_kept = connection is not None
            if connection is None:
                connection = await self._connect(target)
            reader = ResponseReader(choose)
            try:
                await connection.exchange(request, reader)
            finally:
                self._keep(target.origin, connection)
            # A kept connection may end at the moment it is used again; that says nothing of the host.
            if reader.has_begun or not is_kept:
                return reader

    def _take(self, origin: str) -> "_Connection | None":
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.is_free:
                return connection
        return None

    def _keep(self, origin: str, connection: "_Connection") -> None:
        if not connection.is_free:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(origin, []).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(_KEEPALIVE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        for origin, connections in list(self._idle.items()):
            for connection in connections:
                if loop.time() - connection.idle_since >= _KEEPALIVE_SECONDS:
                    connection.close()
            connections[:] = [connection for connection in connections if connection.is_free]
            if not connections:
                del self._idle[origin]
        self._sweep = loop.call_later(_KEEPALIVE_SECONDS, self._close_idle) if self._idle else None

    async def _connect(self, target: Target) -> "_Connection":
        loop = asyncio.get_running_loop()
        # Addresses, not names: what was checked is what is connected to.
        addresses = [
            info
            for address in await self._resolve(target.host)
            for info in socket.getaddrinfo(
                address, target.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            )
        ]
        connected = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS, interleave=1
        )
        is_secure = target.scheme == "https"
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._open),
                sock=connected,
                ssl=self._tls_context() if is_secure else None,
                server_hostname=target.host.rstrip(".") if is_secure else None,
            )
        except ssl.SSLError as error:
            raise PermanentError("SSL error: no secure connection could be made") from error
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _first_lines(target: Target) -> bytes:
    start = len(target.scheme) + len("://")
    slash = target.url.index("/", start)
    # A dot at the end makes a name absolute for the DNS; servers do not know it as theirs.
    name = target.url[start:slash].replace(target.host, target.host.rstrip("."), 1)
    return f"GET {target.url[slash:]} HTTP/1.1\r\nHost: {name}\r\n".encode()


class _Connection(asyncio.Protocol):
    """A connection; while it is free, it is one that a request may use."""

    def __init__(self, open_connections: "set[_Connection]") -> None:
        self._open = open_connections
        self._reader: ResponseReader | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.is_free = False
        self.idle_since = 0.0

    async def exchange(self, request: bytes, reader: ResponseReader) -> None:
        """Send a request and return when the reader has all that comes."""
        self.is_free = False
        self._reader = reader
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if self._transport.is_closing():
                reader.end(None)
            else:
                self._transport.write(request)
                await self._waiter
        finally:
            self._reader = self._waiter = None
        self.is_free = reader.is_keepable and not self._transport.is_closing()

    def close(self) -> None:
        """Close without waiting."""
        self.is_free = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        """Hand bytes on; those that nobody asked for end the connection."""
        if self._reader is None:
            self.close()
            return
        self._reader.feed(data)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._open.discard(self)
        self.is_free = False
        if self._reader is not None:
            self._reader.end(exc)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and self._reader.has_ended and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
