"""Who may ask the server for anything: whoever has the token, from this machine, through a page of this server.

A page of another site can make the browser send requests here (by a form, by an image, by a name that it points at 127.0.0.1). Against the
first two stand the cookie, which goes along with requests of this site only, and the check of where a change comes from; against the last
the check of the name that was asked for.
"""

import ipaddress
import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from schemas.errors import InputError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_PARAMETER = "token"
_LOCAL_NAMES = frozenset({"localhost"})
_MAX_PARAMETERS = 100
_SAFE_METHODS = frozenset({"GET", "HEAD"})

# A page that runs no script but its own files; the empty icon is a `data:` URL.
CONTENT_POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
])
# In a header it can say as well that no other page may show this one in a frame.
PAGE_POLICY = f"{CONTENT_POLICY}; frame-ancestors 'none'"
# For answers that are no page, should somebody open one by itself.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": DATA_POLICY,
    "cache-control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where the server listens and what opens it.

    Access(host="127.0.0.1")                                   # with a token of its own
    Access(host="127.0.0.1", token="")                         # anybody on this machine
    Access(host="0.0.0.0", allow_remote=True)                  # anybody with the token
    """

    host: str = "127.0.0.1"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    allow_remote: bool = False

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.allow_remote:
            raise InputError(
                f"--host {self.host} can be reached from other machines, and what is sent is not encrypted; use the default 127.0.0.1 with "
                "an SSH tunnel (ssh -L 8080:127.0.0.1:8080 HOST), or give --allow-remote as well"
            )
        if not is_loopback(self.host) and not self.token:
            raise InputError("--no-token is for this machine only; leave it out, or leave --host at 127.0.0.1")

    def knows(self, host: str) -> bool:
        """Tell whether a request's Host is a name of this server and not one that somebody else points at it."""
        name = _host_name(host)
        if name is None:
            return False
        if name in _LOCAL_NAMES or is_loopback(name):
            return True
        # An address cannot be pointed elsewhere; a name can, unless it is this machine's own.
        own = {self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return self.allow_remote and (_is_address(name) or name in own)

    def opens(self, token: str) -> bool:
        """Compare a token in a time that does not depend on where it differs."""
        return secrets.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


class AccessControl:
    """ASGI middleware: answers who may not ask, gives the cookie to who brings the token, sets the headers of every answer."""

    def __init__(self, app: "ASGIApp", access: Access, port: int) -> None:
        self._app = app
        self._access = access
        # Cookies are shared by all ports of a host; another browser on another port keeps its own.
        self.cookie = f"winnow-browse-{port}"
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refuse(scope, headers)
        if refusal:
            await _answer(send, *refusal)
            return
        cookie = self._new_cookie(scope)

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name.lower() for name, _ in given}
                extra = [
                    (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in names
                ]
                if cookie:
                    extra.append((b"set-cookie", cookie.encode()))
                message = {**message, "headers": [*given, *extra]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _refuse(self, scope: "Scope", headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._access.knows(host):
            return 421, f"this server is not called {host[:100]!r}; open the address that `winnow browse` printed"
        if self._access.token and not self._is_known(scope, headers):
            return 401, "open the address that `winnow browse` printed: it holds the token"
        if scope["method"] not in _SAFE_METHODS:
            origin = headers.get("origin")
            is_ours = origin is not None and urlsplit(origin).netloc.lower() == host.lower()
            if not is_ours or headers.get("sec-fetch-site", "same-origin") != "same-origin":
                return 403, "changes are taken from this server's own page only"
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return 415, "changes are sent as application/json"
        return None

    def _is_known(self, scope: "Scope", headers: Mapping[str, str]) -> bool:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            morsel = None
        if morsel is not None and secrets.compare_digest(morsel.value.encode(), self._session.encode()):
            return True
        return scope["method"] in _SAFE_METHODS and self._access.opens(_token_of(scope))

    def _new_cookie(self, scope: "Scope") -> str:
        """Return the cookie for who brought the token in the address."""
        if not self._access.token or not self._access.opens(_token_of(scope)):
            return ""
        return f"{self.cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"


def is_loopback(host: str) -> bool:
    """Tell whether a host can be reached from this machine only."""
    if host.lower() in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str | None:
    """Return the name of a Host header without its port, or None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where that is no number
    except ValueError:
        return None
    is_plain = parts.netloc == host and "@" not in host and not parts.path and not parts.query and not parts.fragment
    return parts.hostname if is_plain else None


def _token_of(scope: "Scope") -> str:
    try:
        text: str = scope["query_string"].decode("latin-1")
        found = parse_qs(text, max_num_fields=_MAX_PARAMETERS)
    except ValueError:  # too many of them
        return ""
    return found.get(TOKEN_PARAMETER, [""])[0]


async def _answer(send: "Send", status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = {**_HEADERS, "content-type": "application/json", "content-length": str(len(body))}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
