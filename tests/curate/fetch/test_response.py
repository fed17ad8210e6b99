"""Responses as hostile servers cut and stretch them."""

import zlib

import pytest

from curate.fetch.body import Body
from curate.fetch.errors import OptedOutError, PermanentError, TemporaryError
from curate.fetch.response import Head, ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"


def take_all(head: Head) -> Body:
    return Body(head.get(b"content-encoding"), head.content_length, 1_000_000)


def read(data: bytes, *, piece: int = 0, end: bool = False) -> ResponseReader:
    """Feed bytes in pieces (0: at once) and, with `end`, the end of the connection."""
    reader = ResponseReader(take_all)
    for start in range(0, len(data), piece or len(data)):
        reader.feed(data[start : start + (piece or len(data))])
        if reader.has_ended:
            break
    if end:
        reader.end(None)
    return reader


def body(reader: ResponseReader) -> bytes:
    assert reader.error is None
    assert reader.has_ended
    assert reader.body is not None
    return reader.body.read()


@pytest.mark.parametrize("piece", [0, 1, 7])
@pytest.mark.parametrize(
    ("data", "is_keepable"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", True),
        (OK + b"content-LENGTH: 5\r\nConnection: close\r\n\r\nhello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2;name=value\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n", True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", True),
        (OK + b"Upgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\nContent-Length: 5\r\n\r\nhello", True),
    ],
)  # fmt: skip
def test_bodies_of_every_framing(data: bytes, is_keepable: bool, piece: int) -> None:
    reader = read(data, piece=piece)
    assert body(reader) == b"hello"
    assert reader.is_keepable == is_keepable
    assert reader.head.get(b"link") == ""


@pytest.mark.parametrize("piece", [0, 1])
def test_a_body_without_a_length_ends_with_its_connection(piece: int) -> None:
    assert not read(OK + b"\r\nhello", piece=piece).has_ended
    reader = read(OK + b"\r\nhello", piece=piece, end=True)
    assert body(reader) == b"hello"
    assert not reader.is_keepable


def test_a_response_without_a_body() -> None:
    reader = read(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert body(reader) == b""
    assert (reader.head.status, reader.is_keepable) == (204, True)


def test_what_was_not_asked_for_ends_the_connection_and_changes_nothing() -> None:
    whole = OK + b"Content-Length: 2\r\n\r\nok"
    for surplus in (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"garbage"):
        reader = read(whole + surplus)
        assert body(reader) == b"ok"
        assert not reader.is_keepable


@pytest.mark.parametrize(
    "data",
    [
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 9000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-Endless: " + b"y" * 200_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Endless: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-Many: y\r\n" * 20_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [0, 1000])
def test_what_is_no_response_or_an_endless_one_is_refused(data: bytes, piece: int) -> None:
    reader = read(data, piece=piece)
    assert isinstance(reader.error, PermanentError)
    assert str(reader.error) == "Bad HTTP response"
    assert reader.has_ended
    assert not reader.is_keepable


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", None, "Remote end closed connection without response"),
        (b"HTTP/1.1 200", None, "Remote end closed connection without response"),
        (b"", ConnectionResetError(104, "reset"), "Connection reset by peer"),
        (OK + b"Content-Length: 9\r\n\r\nhello", None, "IncompleteRead: the body ended early"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello", None, "IncompleteRead: the body ended early"),
        (OK + b"\r\nhello", ConnectionResetError(104, "reset"), "IncompleteRead: the body ended early"),
    ],
)  # fmt: skip
def test_connections_that_end_early_may_be_tried_again(data: bytes, error: Exception | None, message: str) -> None:
    reader = ResponseReader(take_all)
    reader.feed(data)
    reader.end(error)
    assert isinstance(reader.error, TemporaryError)
    assert str(reader.error) == message


def test_a_choice_may_refuse_or_leave_the_body() -> None:
    def refuse(head: Head) -> Body | None:
        raise OptedOutError("no" if "noai" in head.values(b"x-robots-tag") else "yes")

    reader = ResponseReader(refuse)
    reader.feed(OK + b"X-Robots-Tag: a\r\nX-Robots-Tag: noai\r\nContent-Length: 5\r\n\r\nhello")
    assert str(reader.error) == "no"
    reader = ResponseReader(lambda head: None)
    reader.feed(b"HTTP/1.1 302 Found\r\nLocation: /\xc3\xa4\r\nContent-Length: 5\r\n\r\n")
    assert (reader.error, reader.has_ended, reader.is_keepable) == (None, True, False)
    assert reader.head.get(b"location") == "/ä"


def test_bodies_over_the_limit() -> None:
    def choose(cut: bool) -> ResponseReader:
        return ResponseReader(lambda head: Body(head.get(b"content-encoding"), head.content_length, 1000, cut=cut))

    bomb = zlib.compress(b"\0" * 10_000_000)
    for head in (b"Content-Length: 1001\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n", b"\r\n"):
        reader = choose(cut=False)
        reader.feed(OK + head + b"x" * 1001)
        assert str(reader.error) == "body larger than 1000 bytes"
    reader = choose(cut=False)
    reader.feed(OK + b"Content-Encoding: deflate\r\n\r\n" + bomb)
    assert str(reader.error) == "body larger than 1000 bytes"
    reader = choose(cut=True)
    reader.feed(OK + b"\r\n" + b"x" * 600)
    reader.feed(b"y" * 600)
    assert reader.has_ended
    assert body(reader) == b"x" * 600
    assert not reader.is_keepable
