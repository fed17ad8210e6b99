"""Connections: which are kept, what ends them, and where they lead."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from curate.fetch import connections as module
from curate.fetch.addresses import parse_url
from curate.fetch.body import Body
from curate.fetch.connections import Connections
from curate.fetch.errors import PermanentError
from curate.fetch.response import Head, ResponseReader

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def resolve(host: str) -> Sequence[str]:
    if host.endswith("refused.example"):
        raise PermanentError("Refused: private address")
    return ("127.0.0.1",)


def take_all(head: Head) -> Body:
    return Body("", head.content_length, 1000)


class Server:
    """Answers every request with the next of some bytes; `None` ends the connection instead."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.num_ended = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.num_ended += 1
        finally:
            writer.close()

    def run(
        self,
        work: Callable[[Connections, str], Awaitable[object]],
        tls: ssl.SSLContext | None = None,
    ) -> object:
        async def both() -> object:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=tls)
            port = server.sockets[0].getsockname()[1]
            connections = Connections(resolve, [("User-Agent", "x/1"), ("Accept", "*/*")])
            try:
                return await asyncio.wait_for(work(connections, f"name.example:{port}"), 10)
            finally:
                connections.close()
                server.close()

        return asyncio.run(both())


def body(reader: ResponseReader) -> bytes:
    assert reader.error is None, reader.error
    assert reader.body is not None
    return reader.body.read()


def test_a_request_is_as_short_as_can_be_and_its_connection_is_used_again() -> None:
    server = Server(ANSWER, ANSWER)

    async def work(connections: Connections, place: str) -> None:
        for path in ("/a?b=c", "/ä b#fragment"):
            assert body(await connections.get(parse_url(f"http://user:secret@{place}{path}"), take_all)) == b"ok"
        rest = f"Host: {place}\r\nUser-Agent: x/1\r\nAccept: */*\r\n\r\n".encode()
        assert server.requests == [b"GET /a?b=c HTTP/1.1\r\n" + rest, b"GET /%C3%A4%20b HTTP/1.1\r\n" + rest]

    server.run(work)
    assert server.num_connections == 1


def test_an_absolute_name_is_asked_for_as_servers_know_it() -> None:
    server = Server(ANSWER)

    async def work(connections: Connections, place: str) -> None:
        await connections.get(parse_url(f"http://{place.replace(':', '.:')}/"), take_all)
        assert f"Host: {place}\r\n".encode() in server.requests[0]

    server.run(work)


def test_a_kept_connection_that_has_ended_is_no_error() -> None:
    server = Server(ANSWER, None, ANSWER)

    async def work(connections: Connections, place: str) -> None:
        url = parse_url(f"http://{place}/")
        assert [body(await connections.get(url, take_all)) for _ in range(2)] == [b"ok", b"ok"]

    server.run(work)
    assert (server.num_connections, len(server.requests)) == (2, 3)


def test_a_new_connection_that_ends_is_one() -> None:
    server = Server(None)

    async def work(connections: Connections, place: str) -> None:
        reader = await connections.get(parse_url(f"http://{place}/"), take_all)
        assert str(reader.error) == "Remote end closed connection without response"

    server.run(work)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [ANSWER + ANSWER, ANSWER.replace(b"200 OK", b"200 OK\r\nConnection: close"), ANSWER.replace(b"2\r", b"2000\r")],
)
def test_a_connection_is_not_kept_where_anything_is_left(answer: bytes) -> None:
    server = Server(answer, ANSWER)

    async def work(connections: Connections, place: str) -> None:
        url = parse_url(f"http://{place}/")
        await connections.get(url, take_all)
        assert body(await connections.get(url, take_all)) == b"ok"

    server.run(work)
    assert server.num_connections == 2


def test_bytes_that_nobody_asked_for_end_a_kept_connection() -> None:
    server = Server(ANSWER, ANSWER)
    writers: list[asyncio.StreamWriter] = []
    serve = server.serve

    async def remember(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server.serve = remember  # type: ignore[method-assign]

    async def work(connections: Connections, place: str) -> None:
        url = parse_url(f"http://{place}/")
        await connections.get(url, take_all)
        writers[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
        while server.num_ended == 0:
            await asyncio.sleep(0.01)
        assert body(await connections.get(url, take_all)) == b"ok"

    server.run(work)
    assert server.num_connections == 2


def test_a_cancelled_request_ends_its_connection() -> None:
    server = Server(b"", ANSWER)

    async def work(connections: Connections, place: str) -> None:
        url = parse_url(f"http://{place}/")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connections.get(url, take_all)
        assert body(await connections.get(url, take_all)) == b"ok"
        while server.num_ended == 0:
            await asyncio.sleep(0.01)

    server.run(work)
    assert server.num_connections == 2


def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEPALIVE_SECONDS", 0.05)
    server = Server(ANSWER)

    async def work(connections: Connections, place: str) -> None:
        await connections.get(parse_url(f"http://{place}/"), take_all)
        while server.num_ended == 0:
            await asyncio.sleep(0.01)

    server.run(work)


def test_a_host_that_may_not_be_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a[0]) or real(*a, **k))  # type: ignore[func-returns-value]
    server = Server(ANSWER)

    async def work(connections: Connections, place: str) -> None:
        with pytest.raises(PermanentError, match="Refused"):
            await connections.get(parse_url("http://refused.example/"), take_all)
        await connections.get(parse_url(f"http://{place}/"), take_all)

    server.run(work)
    assert "name.example" not in asked  # a name is resolved once, by `resolve`
    assert "refused.example" not in asked


def test_certificates_are_checked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=DNS:name.example", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = Server(ANSWER)

    async def refused(connections: Connections, place: str) -> None:
        with pytest.raises(PermanentError, match="SSL error"):
            await connections.get(parse_url(f"https://{place}/"), take_all)

    server.run(refused, tls)  # nobody vouches for it
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def work(connections: Connections, place: str) -> None:
        assert body(await connections.get(parse_url(f"https://{place}/"), take_all)) == b"ok"
        with pytest.raises(PermanentError, match="SSL error"):
            await connections.get(parse_url(f"https://other.{place}/"), take_all)

    server.run(work, tls)
