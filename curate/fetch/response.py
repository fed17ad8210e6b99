"""Reading one HTTP/1.1 response, within limits, from bytes as they come: no sockets here.

httptools parses it, which is llhttp, the parser of Node.js.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from curate.fetch.body import Body
from curate.fetch.errors import CUT_OFF, DISCONNECTED, FetchError, PermanentError, TemporaryError, os_error

_MAX_FIELD_BYTES = 8190
_MAX_HEAD_BYTES = 64 * 1024
# Bytes in a row that bring nothing of a body: heads, trailers, the frames of chunks.
_MAX_OVERHEAD_BYTES = 64 * 1024


@dataclass
class Head:
    """The status and headers of a response; names are lower case."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def values(self, name: bytes) -> list[str]:
        """Return the values of every header of a name."""
        return [value.decode("utf-8", "surrogateescape") for key, value in self.headers if key == name]

    def get(self, name: bytes) -> str:
        """Return the first header of a name, empty where there is none."""
        return next(iter(self.values(name)), "")

    @property
    def content_length(self) -> int | None:
        """The bytes announced, where they are."""
        value = self.get(b"content-length")
        return int(value[:20]) if value.isascii() and value.isdigit() else None


# Decides, once its head is there, what takes the body of a response; None leaves it unread. It may raise FetchError.
Choose = Callable[[Head], Body | None]


class ResponseReader:
    """Takes the bytes of a connection until the response has ended; then `error` is set, or `head` and `body` are what it brought."""

    def __init__(self, choose: Choose) -> None:
        self.head = Head()
        self.body: Body | None = None
        self.error: FetchError | None = None
        self.has_begun = False
        self.has_ended = False
        self.is_keepable = False  # the connection may serve another request
        self._choose = choose
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._has_head = False
        self._num_head_bytes = 0
        self._num_overhead_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what the connection brought."""
        self.has_begun = True
        self._num_overhead_bytes += len(data)
        parser = self._parser
        if parser is None:
            self.is_keepable = False
            return
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if not self.has_ended:  # what follows a whole response takes nothing from it
                self._fail(_bad_response())
            self.is_keepable = False
        if not self.has_ended and self._num_overhead_bytes > _MAX_OVERHEAD_BYTES:
            self._fail(_bad_response())
        if self.has_ended:
            self._parser = None  # it refers to the reader, and a circle keeps its memory until the collector comes by

    def end(self, error: Exception | None) -> None:
        """Take the end of the connection, `error` being what ended it."""
        if self.has_ended:
            return
        if not self._has_head:
            self._fail(os_error(error) if isinstance(error, OSError) else TemporaryError(DISCONNECTED))
        elif error is not None or self.head.content_length is not None or self.head.get(b"transfer-encoding"):
            self._fail(TemporaryError(CUT_OFF))
        self.has_ended = True  # a body of no announced length ends with its connection
        self._parser = None

    # What the parser calls; an exception in here would not reach the caller of `feed`.

    def on_message_begin(self) -> None:
        """Note a response that nobody asked for."""
        if self.has_ended:
            self.is_keepable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; those after the body count as well, against floods of them."""
        self._num_head_bytes += len(name) + len(value)
        if len(name) > _MAX_FIELD_BYTES or len(value) > _MAX_FIELD_BYTES or self._num_head_bytes > _MAX_HEAD_BYTES:
            self._fail(_bad_response())
        elif not self._has_head:
            self.head.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide what becomes of the body."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if self.has_ended or status < 200:
            return  # 1xx: the answer proper follows
        self._has_head = True
        self.head.status = status
        try:
            self.body = self._choose(self.head)
        except FetchError as error:
            self._fail(error)
        if self.body is None:
            self.has_ended = True

    def on_body(self, chunk: bytes) -> None:
        """Hand on a piece of the body."""
        if self.has_ended or self.body is None:
            return
        self._num_overhead_bytes = 0
        try:
            self.body.feed(chunk)
        except FetchError as error:
            self._fail(error)
        if self.body.is_cut:
            self.has_ended = True

    def on_message_complete(self) -> None:
        """End the response, unless it was an interim one."""
        if self.has_ended:
            return
        if self._has_head:
            assert self._parser is not None
            self.has_ended = True
            self.is_keepable = self._parser.should_keep_alive()
        else:
            self.head.headers.clear()

    def _fail(self, error: FetchError) -> None:
        self.error = self.error or error
        self.has_ended = True
        self.is_keepable = False


def _bad_response() -> FetchError:
    return PermanentError("Bad HTTP response")
