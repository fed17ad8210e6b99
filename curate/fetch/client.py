"""The polite HTTP client: it asks robots.txt first, never more than a host can bear, and cannot be made to hang.

    async with Client(config, memory, connections_per_host=8) as client:
        data = await client.fetch(parse_url(url), uid, trail)

One client serves one shard. DNS answers and robots.txt outlive it in `Memory`, for the life of the process; opt-outs do not, so
that a shard's rows depend on nothing but the hosts they name.
"""

import asyncio
import ipaddress
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from curate.fetch.addresses import DnsCache, Resolver, Target, check_literal, parse_url
from curate.fetch.body import read_body
from curate.fetch.config import DownloadConfig
from curate.fetch.errors import (
    CUT_OFF,
    DISCONNECTED,
    OPTED_OUT,
    ROBOTS_DISALLOWED,
    ROBOTS_UNREACHABLE,
    TIMED_OUT,
    FetchError,
    OptedOutError,
    PermanentError,
    TemporaryError,
    http_error,
    os_error,
    parse_retry_after,
)
from curate.fetch.robots import CACHE_SECONDS, Rules, is_opted_out, parse_robots
from curate.fetch.robots import MAX_BYTES as MAX_ROBOTS_BYTES

_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_MAX_ROBOTS_REDIRECTS = 5
_KEEPALIVE_SECONDS = 15.0
# A body over the limit loses its last chunk; the spare keeps that loss out of what is parsed.
_SPARE_BYTES = 256 * 1024


@dataclass
class Memory:
    """What a process remembers of hosts from shard to shard: DNS answers, and robots.txt with its end of life (monotonic seconds)."""

    dns: DnsCache = field(default_factory=DnsCache)
    rules: dict[str, tuple[float, Rules]] = field(default_factory=dict)


@dataclass
class _Host:
    """The state of one origin in one event loop; times are the loop's."""

    slots: asyncio.Semaphore
    delay: float = 0.0  # between the starts of two requests
    next_start: float = 0.0
    closed_until: float = 0.0  # the server named a time to come back
    closed_error: str = ""


@dataclass
class _Answer:
    """A response, its body read unless it is a redirect or an error."""

    status: int
    location: str
    retry_after: float
    data: bytes


@dataclass
class _Budget:
    """Seconds that an attempt may still take, waiting for its turn not counted."""

    seconds: float


class Client:
    """Fetches URLs for one event loop; see the module."""

    def __init__(self, config: DownloadConfig, memory: Memory, *, connections_per_host: int) -> None:
        self._config = config
        self._memory = memory
        self._per_host = connections_per_host
        self._directives = frozenset(directive.strip().lower() for directive in config.disallowed_directives)
        self._resolver = Resolver(memory.dns, allow_private=config.allow_private)
        self._connections = asyncio.Semaphore(config.connections)
        self._hosts: dict[str, _Host] = {}
        self._robots: dict[str, asyncio.Task[Rules]] = {}
        self.opted_out: set[str] = set()  # origins

    async def __aenter__(self) -> "Client":
        connector = aiohttp.TCPConnector(
            limit=0,  # our own semaphores are fair between hosts
            resolver=_CheckedResolver(self._resolver),
            use_dns_cache=False,
            keepalive_timeout=_KEEPALIVE_SECONDS,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # it knows no limit; `read_body` does
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": self._config.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._robots.values():
            task.cancel()
        await asyncio.gather(*self._robots.values(), return_exceptions=True)
        await self._session.close()

    async def fetch(self, target: Target, uid: str, trail: set[str]) -> bytes:
        """Fetch a URL and return its bytes; raises FetchError. `trail` gathers the origins asked."""
        config = self._config
        for attempt in range(config.retries + 1):
            try:
                return await self._attempt(target, trail)
            except TemporaryError as error:
                is_last = attempt == config.retries or error.is_spent
                if is_last or error.retry_after > config.max_retry_after_seconds:
                    raise
                jitter = random.Random(f"{config.seed}:{uid}:{attempt}").uniform(
                    0, 2 * config.backoff_seconds * 2**attempt
                )
                await asyncio.sleep(max(error.retry_after, jitter))
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, target: Target, trail: set[str]) -> bytes:
        budget = _Budget(self._config.request_seconds)
        for _ in range(self._config.max_redirects + 1):
            trail.add(target.origin)
            await self._check_robots(target)
            async with self._turn(target):
                self._check_opt_out(target)  # again: an answer may have come while this one waited for its turn
                answer = await self._get(target, budget, self._config.max_bytes, is_image=True)
            if answer.status in _REDIRECTS and answer.location:
                target = parse_url(answer.location, base=target.url)
                continue
            if not 200 <= answer.status < 300:
                raise self._refused(target, answer)
            return answer.data
        raise PermanentError("Too many redirects")

    def _refused(self, target: Target, answer: _Answer) -> FetchError:
        error = http_error(answer.status, answer.retry_after)
        if answer.retry_after and isinstance(error, TemporaryError):
            # It is the host that is tired, not the one picture.
            host = self._host(target)
            host.closed_until = max(host.closed_until, asyncio.get_running_loop().time() + answer.retry_after)
            host.closed_error = str(error)
        return error

    async def _check_robots(self, target: Target) -> None:
        self._check_opt_out(target)
        check_literal(target.host, allow_private=self._config.allow_private)
        if not self._config.respect_robots:
            return
        rules = await self._rules(target)
        if not rules.allows(target.url):
            raise PermanentError(ROBOTS_DISALLOWED)
        self._host(target).delay = min(rules.crawl_delay, self._config.max_crawl_delay_seconds)

    def _check_opt_out(self, target: Target) -> None:
        if target.origin in self.opted_out:
            raise OptedOutError(OPTED_OUT)

    async def _rules(self, target: Target) -> Rules:
        known = self._memory.rules.get(target.origin)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        task = self._robots.get(target.origin)
        if task is None:
            task = self._robots[target.origin] = asyncio.create_task(self._load_rules(target))
        # A failure stays in the task: the whole host has it, and is asked once.
        return await asyncio.shield(task)

    async def _load_rules(self, target: Target) -> Rules:
        config = self._config
        for attempt in range(config.retries + 1):
            try:
                rules = await self._request_rules(parse_url("/robots.txt", base=target.url))
            except TemporaryError as error:
                if attempt == config.retries or error.retry_after > config.max_retry_after_seconds:
                    raise TemporaryError(str(error), error.retry_after, is_spent=True) from error
                jitter = random.Random(f"{config.seed}:{target.origin}:{attempt}").uniform(
                    0, 2 * config.backoff_seconds * 2**attempt
                )
                await asyncio.sleep(max(error.retry_after, jitter))
            else:
                self._memory.rules[target.origin] = (time.monotonic() + CACHE_SECONDS, rules)
                return rules
        raise AssertionError("the last attempt returns or raises")

    async def _request_rules(self, target: Target) -> Rules:
        budget = _Budget(self._config.request_seconds)
        for _ in range(_MAX_ROBOTS_REDIRECTS + 1):
            check_literal(target.host, allow_private=self._config.allow_private)
            async with self._turn(target):
                answer = await self._get(target, budget, MAX_ROBOTS_BYTES + _SPARE_BYTES, is_image=False)
            if answer.status in _REDIRECTS and answer.location:
                target = parse_url(answer.location, base=target.url)
                continue
            if 200 <= answer.status < 300:
                return parse_robots(answer.data, self._config.agent_token)
            if answer.status == 429 or answer.status >= 500:
                message = f"{ROBOTS_UNREACHABLE}: {http_error(answer.status)}"
                raise TemporaryError(message, answer.retry_after)
            break
        # "Unavailable" (4xx, endless redirects): RFC 9309 allows everything.
        return Rules(self._config.agent_token, None)

    def _host(self, target: Target) -> _Host:
        host = self._hosts.get(target.origin)
        if host is None:
            host = self._hosts[target.origin] = _Host(asyncio.Semaphore(self._per_host))
        return host

    @asynccontextmanager
    async def _turn(self, target: Target) -> AsyncIterator[None]:
        """Hold a place at the host, then a connection: whoever waits for a slow host keeps no connection from the others."""
        host = self._host(target)
        loop = asyncio.get_running_loop()
        async with host.slots:
            while (wait := max(host.closed_until, host.next_start) - loop.time()) > 0:
                self._check_closed(host)
                await asyncio.sleep(wait)
            host.next_start = loop.time() + host.delay
            async with self._connections:
                yield

    def _check_closed(self, host: _Host) -> None:
        if host.closed_until - asyncio.get_running_loop().time() > self._config.max_retry_after_seconds:
            raise TemporaryError(host.closed_error, is_spent=True)

    async def _get(self, target: Target, budget: _Budget, max_bytes: int, *, is_image: bool) -> _Answer:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(budget.seconds):
                return await self._exchange(target, max_bytes, is_image=is_image)
        except TimeoutError as error:
            raise TemporaryError(TIMED_OUT) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translate(error) from error
        finally:
            budget.seconds -= loop.time() - start

    async def _exchange(self, target: Target, max_bytes: int, *, is_image: bool) -> _Answer:
        async with self._session.get(URL(target.url, encoded=True), allow_redirects=False) as response:
            headers = response.headers
            if is_image and is_opted_out(
                headers.getall("X-Robots-Tag", ()), self._config.agent_token, self._directives
            ):
                response.close()
                self.opted_out.add(target.origin)
                raise OptedOutError(OPTED_OUT)
            retry_after = parse_retry_after(headers.get("Retry-After", ""))
            answer = _Answer(response.status, headers.get("Location", ""), retry_after, b"")
            if 200 <= response.status < 300:
                answer.data = await read_body(response, max_bytes, cut=not is_image)
            else:
                response.close()
            return answer


class _CheckedResolver(AbstractResolver):
    """Gives connections only addresses that were checked."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        del family  # both families, as the host has them
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6
                if ipaddress.ip_address(address.partition("%")[0]).version == 6
                else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._resolver.addresses(host)
        ]

    async def close(self) -> None:
        """Nothing to close: the DNS threads belong to the process."""


def _translate(error: Exception) -> FetchError:
    if isinstance(error, aiohttp.ClientSSLError):
        return PermanentError("SSL error: no secure connection could be made")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return TemporaryError(DISCONNECTED)
    if isinstance(error, aiohttp.ClientPayloadError):
        return TemporaryError(CUT_OFF)
    if isinstance(error, OSError):  # ClientOSError and ClientConnectorError are
        return os_error(error)
    if isinstance(error, aiohttp.InvalidURL):
        return PermanentError("Invalid URL")
    return PermanentError("Bad HTTP response")
