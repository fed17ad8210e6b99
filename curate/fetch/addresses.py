"""Which URLs and addresses may be fetched, and the DNS of a process: every address is checked before a connection uses it.

The check sits in the resolver that the connection itself calls, so a name cannot answer with a public address when it is asked and
with a private one when it is connected to; redirects pass through it like any other request.
"""

import asyncio
import functools
import ipaddress
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import idna

from curate.fetch.errors import PermanentError, TemporaryError, gai_error

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Characters that stay as they are; everything else (spaces, non-ASCII, a stray %) is percent-encoded as UTF-8.
_PATH_SAFE = "/:@!$&'()*+,;=~-._%[]"
_QUERY_SAFE = _PATH_SAFE + "?"
_HEX = frozenset("0123456789abcdefABCDEF")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_RESOLVE_SECONDS = 300.0
_FAILED_SECONDS = 60.0
_DNS_THREADS = 32
_CHECKED_HOSTS = 65_536


@dataclass(frozen=True)
class Target:
    """A URL ready to be requested: ASCII only, no fragment; `origin` is what robots.txt and limits go by."""

    url: str
    scheme: str
    host: str
    port: int
    origin: str  # scheme, host and port


def parse_url(text: str, *, base: str | None = None) -> Target:
    """Return the URL as a request sends it: percent-encoded, IDNA host; only http and https pass."""
    try:
        parts = urlsplit(urljoin(base, text.strip()) if base else text.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError as error:
        raise PermanentError("Invalid URL") from error
    if scheme not in ("http", "https"):
        raise PermanentError("Invalid URL" if not scheme else "URL scheme not allowed: only http and https are fetched")
    try:
        host = host if host.isascii() else idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError) as error:
        raise PermanentError("Invalid URL") from error
    if not host or len(host) > 253 or any(c in host for c in " %\\^`{|}<>\"'") or not host.isprintable():
        raise PermanentError("Invalid URL")
    port = port if port is not None else (443 if scheme == "https" else 80)
    netloc = f"[{host}]" if ":" in host else host
    origin = f"{scheme}://{netloc}:{port}"
    netloc += "" if port == (443 if scheme == "https" else 80) else f":{port}"
    path, query = _percent_encode(parts.path or "/", _PATH_SAFE), _percent_encode(parts.query, _QUERY_SAFE)
    return Target(urlunsplit((scheme, netloc, path, query, "")), scheme, host, port, origin)


def _percent_encode(text: str, safe: str) -> str:
    encoded = quote(text, safe=safe, errors="surrogatepass")
    if "%" not in text:
        return encoded
    pieces = encoded.split("%")
    rest = [
        f"%{piece}" if len(piece) >= 2 and piece[0] in _HEX and piece[1] in _HEX else f"%25{piece}"
        for piece in pieces[1:]
    ]
    return pieces[0] + "".join(rest)


def is_public(address: IpAddress) -> bool:
    """Tell whether an address is one of the open internet, seeing through IPv4 embedded in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if int(address) >> 32 == 0:  # the old "compatible" form, ::127.0.0.1
            embedded.append(ipaddress.IPv4Address(int(address)))
        if address.is_site_local or any(inner is not None and not is_public(inner) for inner in embedded):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
    )


def check_addresses(addresses: Sequence[str], *, allow_private: bool) -> None:
    """Raise PermanentError where any address of a host is not public: a host that mixes them is up to something."""
    if allow_private:
        return
    for address in addresses:
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise PermanentError("Refused: private address")


@functools.lru_cache(maxsize=_CHECKED_HOSTS)
def check_literal(host: str, *, allow_private: bool) -> None:
    """Check a host that is an address itself. Shorthands ("127.1", "2130706433") are refused: HTTP libraries pass them on unresolved."""
    if ":" in host or host.replace(".", "").isdigit():
        try:
            address = str(ipaddress.ip_address(host))
        except ValueError as error:
            raise PermanentError("Invalid URL") from error
        check_addresses([address], allow_private=allow_private)


@dataclass
class DnsCache:
    """The answers of a process: host -> addresses or error, each with its end of life on the monotonic clock."""

    answers: dict[str, tuple[float, tuple[str, ...] | PermanentError | TemporaryError]] = field(default_factory=dict)
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=_DNS_THREADS, thread_name_prefix="dns")
    )


class Resolver:
    """Resolves and checks hosts for one event loop; one question per host however many wait for the answer."""

    def __init__(self, cache: DnsCache, *, allow_private: bool) -> None:
        self._cache = cache
        self._allow_private = allow_private
        self._asked: dict[str, asyncio.Future[tuple[str, ...]]] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Return the checked addresses of a host, or raise the error that its URLs get."""
        known = self._cache.answers.get(host)
        if known is None or known[0] < time.monotonic():
            found = await self._ask(host)
        elif isinstance(known[1], tuple):
            found = known[1]
        else:
            raise known[1].with_traceback(None)
        check_addresses(found, allow_private=self._allow_private)
        return found

    async def _ask(self, host: str) -> tuple[str, ...]:
        if host not in self._asked:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._cache.pool, _lookup, host)
            self._asked[host] = future
            future.add_done_callback(lambda done: self._remember(host, done))
        # One impatient caller must not take the answer from the others.
        return await asyncio.shield(self._asked[host])

    def _remember(self, host: str, done: "asyncio.Future[tuple[str, ...]]") -> None:
        self._asked.pop(host, None)
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._cache.answers[host] = (time.monotonic() + _RESOLVE_SECONDS, done.result())
        elif isinstance(error, PermanentError | TemporaryError):
            self._cache.answers[host] = (time.monotonic() + _FAILED_SECONDS, error)


def _lookup(host: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        raise gai_error(error) from error
    except (OSError, UnicodeError) as error:
        raise PermanentError("Name or service not known") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
