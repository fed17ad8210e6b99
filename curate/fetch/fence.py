"""The fence around img2dataset's downloads: everything it asks of the network goes through urllib, and urllib goes through here.

It reads robots.txt, sends our user agent, refuses other schemes and private addresses (also after redirects and in DNS answers), limits
size, time and redirects, and says what went wrong in our words.
"""

import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import IO, Any

from curate.fetch.addresses import check_addresses, check_literal, parse_url
from curate.fetch.body import Inflater, too_large
from curate.fetch.config import DownloadConfig
from curate.fetch.errors import (
    CUT_OFF,
    DEADLINE,
    DISCONNECTED,
    OPTED_OUT,
    ROBOTS_DISALLOWED,
    ROBOTS_UNREACHABLE,
    TIMED_OUT,
    FetchError,
    OptedOutError,
    PermanentError,
    TemporaryError,
    gai_error,
    http_error,
    os_error,
    parse_retry_after,
)
from curate.fetch.robots import MAX_BYTES, Rules, is_opted_out, parse_robots

_CHUNK_BYTES = 64 * 1024
_FIRST_URL = "winnow_first_url"
_MAX_ROBOTS_REDIRECTS = 5


class Fence:
    """The state of one process that runs img2dataset; `install` makes urllib and the socket module use it."""

    def __init__(self, config: DownloadConfig, deadline: float) -> None:
        self.config = config
        self.deadline = deadline  # monotonic seconds
        self.opted_out: set[str] = set()  # origins
        self.trails: dict[str, set[str]] = {}  # first URL of a chain -> origins asked
        self.retry_after = 0.0  # the longest wait that a server asked for
        self._directives = frozenset(directive.strip().lower() for directive in config.disallowed_directives)
        self._rules: dict[str, Rules | FetchError] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._addresses: dict[str, list[Any]] = {}

    def install(self) -> None:
        """Fence urllib and name resolution of this process, for good."""
        handlers = [
            _Requests(self),
            _Http(),
            _Https(),
            _Redirects(self),
            _Errors(self),
            urllib.request.HTTPErrorProcessor(),
        ]
        opener = urllib.request.OpenerDirector()
        for handler in handlers:
            opener.add_handler(handler)
        opener.addheaders = []
        urllib.request.install_opener(opener)
        resolve = socket.getaddrinfo

        def resolve_checked(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
            try:
                found = resolve(host, port, *args, **kwargs)
            except socket.gaierror as error:
                raise gai_error(error) from error
            check_addresses([str(entry[4][0]) for entry in found], allow_private=self.config.allow_private)
            return found

        socket.getaddrinfo = resolve_checked

    def check_request(self, request: urllib.request.Request) -> None:
        """Raise unless the request may be made."""
        if time.monotonic() > self.deadline:
            raise TemporaryError(DEADLINE)
        target = parse_url(request.full_url)
        first = getattr(request, _FIRST_URL, request.full_url)
        with self._lock:
            self.trails.setdefault(first, set()).add(target.origin)
        if target.origin in self.opted_out:
            raise OptedOutError(OPTED_OUT)
        check_literal(target.host, allow_private=self.config.allow_private)
        if self.config.respect_robots and not getattr(request, "is_robots", False):
            rules = self._find_rules(target.origin)
            if not rules.allows(target.url):
                raise PermanentError(ROBOTS_DISALLOWED)

    def check_response(self, request: urllib.request.Request, headers: Message) -> None:
        """Raise where the response's headers opt out."""
        if not getattr(request, "is_robots", False) and is_opted_out(
            headers.get_all("X-Robots-Tag") or [], self.config.agent_token, self._directives
        ):
            self.opted_out.add(parse_url(request.full_url).origin)
            raise OptedOutError(OPTED_OUT)

    def read(self, response: http.client.HTTPResponse, end: float, max_bytes: int, *, cut: bool = False) -> bytes:
        """Read a body within size and time."""
        inflater = Inflater(response.headers.get("Content-Encoding", ""), max_bytes)
        if not cut and (response.length or 0) > max_bytes:
            raise too_large(max_bytes)
        body = bytearray()
        try:
            while chunk := response.read1(_CHUNK_BYTES):
                body += inflater.feed(chunk)
                if time.monotonic() > end:
                    raise TemporaryError(TIMED_OUT)
        except PermanentError:
            if not cut:
                raise
        except (OSError, http.client.HTTPException) as error:
            raise translate(error) from error
        if response.length:
            raise TemporaryError(CUT_OFF)
        return bytes(body)

    def _find_rules(self, origin: str) -> Rules:
        with self._lock:
            lock = self._locks.setdefault(origin, threading.Lock())
        with lock:
            if origin not in self._rules:
                self._rules[origin] = self._load_rules(origin)
            found = self._rules[origin]
        if isinstance(found, FetchError):
            raise type(found)(str(found))
        return found

    def _load_rules(self, origin: str) -> Rules | FetchError:
        request = urllib.request.Request(f"{origin}/robots.txt")
        request.is_robots = True  # type: ignore[attr-defined]
        try:
            with urllib.request.urlopen(request, timeout=self.config.request_seconds) as response:
                return parse_robots(response.read(), self.config.agent_token)
        except (TemporaryError, PermanentError) as error:
            if not str(error).startswith("HTTP Error"):
                is_endless = str(error) == "Too many redirects"
                return Rules(self.config.agent_token, None) if is_endless else error
            is_busy = isinstance(error, TemporaryError) or str(error).startswith("HTTP Error 5")
            return TemporaryError(f"{ROBOTS_UNREACHABLE}: {error}") if is_busy else Rules(self.config.agent_token, None)


class _Requests(urllib.request.BaseHandler):
    """Checks each request before it goes out and each response before it is read."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self._fence.check_request(request)
        request.add_header("User-agent", self._fence.config.user_agent)
        request.add_header("Accept", "*/*")
        request.add_header("Accept-encoding", "identity")
        return request

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        fence = self._fence
        fence.check_response(request, response.headers)
        end = time.monotonic() + fence.config.request_seconds
        is_robots = getattr(request, "is_robots", False)
        limit = MAX_BYTES + 4 * _CHUNK_BYTES if is_robots else fence.config.max_bytes
        # img2dataset calls `read()`: of all there is, for as long as it takes.
        response.read = lambda: _read_raw(fence, response, end, limit, is_robots)
        return response

    https_request = http_request
    https_response = http_response


def _read_raw(fence: Fence, response: Any, end: float, limit: int, is_robots: bool) -> bytes:
    del response.read  # the class's own again: `read1` does not use it, closing may
    return fence.read(response, end, limit, cut=is_robots)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return _translated(super().http_open, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return _translated(super().https_open, request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, fence: Fence) -> None:
        self._fence = fence

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        del msg
        is_robots = getattr(req, "is_robots", False)
        location = headers.get("Location")
        if not location:
            raise http_error(code)
        hops = getattr(req, "hops", 0) + 1
        if hops > (_MAX_ROBOTS_REDIRECTS if is_robots else self._fence.config.max_redirects):
            raise PermanentError("Too many redirects")
        target = parse_url(location, base=req.full_url)
        fp.close()
        following = urllib.request.Request(target.url)
        for name, value in (
            ("hops", hops),
            ("is_robots", is_robots),
            (_FIRST_URL, getattr(req, _FIRST_URL, req.full_url)),
        ):
            setattr(following, name, value)
        return self.parent.open(following, timeout=req.timeout)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Errors(urllib.request.BaseHandler):
    def __init__(self, fence: Fence) -> None:
        self._fence = fence

    def http_error_default(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        del req, msg
        fp.close()
        self._fence.retry_after = max(self._fence.retry_after, parse_retry_after(headers.get("Retry-After", "")))
        raise http_error(code)


def _translated(
    open_url: Callable[[urllib.request.Request], http.client.HTTPResponse], request: urllib.request.Request
) -> http.client.HTTPResponse:
    try:
        return open_url(request)
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise translate(error) from error


def translate(error: Exception) -> FetchError:
    """Return what went wrong in urllib in our words."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, FetchError):
        return cause
    if isinstance(cause, TimeoutError) or "timed out" in str(cause):
        return TemporaryError(TIMED_OUT)
    if isinstance(cause, ssl.SSLError):
        return PermanentError("SSL error: no secure connection could be made")
    if isinstance(cause, http.client.RemoteDisconnected):
        return TemporaryError(DISCONNECTED)
    if isinstance(cause, http.client.IncompleteRead):
        return TemporaryError(CUT_OFF)
    if isinstance(cause, OSError):
        return os_error(cause)
    return PermanentError("Bad HTTP response")
