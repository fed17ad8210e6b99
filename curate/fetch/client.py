"""The polite HTTP client: it asks robots.txt first, never more than a host can bear, and cannot be made to hang.

    async with Client(config, memory, connections_per_host=8) as client:
        data = await client.fetch(parse_url(url), uid, trail, visit)

One client serves the shards of one worker: connections and what a host can bear are theirs together. DNS answers and robots.txt outlive
it in `Memory`, for the life of the process. Opt-outs belong to a shard's `Visit`, so that its rows depend on nothing but the hosts they name.
"""

import asyncio
import ipaddress
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType

from curate.fetch.addresses import DnsCache, Resolver, Target, check_literal, parse_url
from curate.fetch.body import Body
from curate.fetch.config import DownloadConfig
from curate.fetch.connections import Connections
from curate.fetch.errors import (
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
from curate.fetch.response import Head
from curate.fetch.robots import CACHE_SECONDS, Rules, is_opted_out, parse_robots
from curate.fetch.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from curate.forgotten import MESSAGE

_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_MAX_ROBOTS_REDIRECTS = 5
# A body over the limit loses its last chunk; the spare keeps that loss out of what is parsed.
_SPARE_BYTES = 256 * 1024


@dataclass
class Memory:
    """What a process remembers of hosts from shard to shard: DNS answers, and robots.txt with its end of life (monotonic seconds)."""

    dns: DnsCache = field(default_factory=DnsCache)
    rules: dict[str, tuple[float, Rules]] = field(default_factory=dict)


@dataclass
class Visit:
    """What hosts told one shard, which no other shard is to know."""

    opted_out: set[str] = field(default_factory=set)  # origins
    unreachable: dict[str, FetchError] = field(default_factory=dict)  # origin -> why its robots.txt could not be read
    refuses: Callable[[str], bool] = lambda _: False  # tells of a URL whether it was taken down


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
        self.connections_per_host = connections_per_host
        self._directives = frozenset(directive.strip().lower() for directive in config.disallowed_directives)
        self._resolver = Resolver(memory.dns, allow_private=config.allow_private)
        self._places = asyncio.Semaphore(config.connections)
        self._hosts: dict[str, _Host] = {}
        self._robots: dict[str, asyncio.Task[Rules]] = {}  # those being asked

    async def __aenter__(self) -> "Client":
        headers = (("User-Agent", self._config.user_agent), ("Accept", "*/*"), ("Accept-Encoding", "identity"))
        self._connections = Connections(self._addresses, headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asked = list(self._robots.values())
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        self._connections.close()

    async def fetch(self, target: Target, uid: str, trail: set[str], visit: Visit) -> bytes:
        """Fetch a URL and return its bytes; raises FetchError. `trail` gathers the origins asked, `visit` what they say."""
        config = self._config
        for attempt in range(config.retries + 1):
            try:
                return await self._attempt(target, trail, visit)
            except TemporaryError as error:
                is_last = attempt == config.retries or error.is_spent
                if is_last or error.retry_after > config.max_retry_after_seconds:
                    raise
                await self._wait(uid, attempt, error.retry_after)
        raise AssertionError("the last attempt returns or raises")

    async def _wait(self, name: str, attempt: int, least: float) -> None:
        """Wait between two attempts, longer after each; how long is drawn by the name of what is fetched."""
        drawn = random.Random(f"{self._config.seed}:{name}:{attempt}")
        await asyncio.sleep(max(least, drawn.uniform(0, 2 * self._config.backoff_seconds * 2**attempt)))

    async def _attempt(self, target: Target, trail: set[str], visit: Visit) -> bytes:
        budget = _Budget(self._config.request_seconds)
        for _ in range(self._config.max_redirects + 1):
            trail.add(target.origin)
            await self._check_robots(target, visit)
            async with self._turn(target):
                _check_opt_out(target, visit)  # again: an answer may have come while this one waited for its turn
                answer = await self._get(target, budget, self._config.max_bytes, visit)
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

    async def _check_robots(self, target: Target, visit: Visit) -> None:
        _check_opt_out(target, visit)
        check_literal(target.host, allow_private=self._config.allow_private)
        if not self._config.respect_robots:
            return
        rules = await self._rules(target, visit)
        if not rules.allows(target.url):
            raise PermanentError(ROBOTS_DISALLOWED)
        self._host(target).delay = min(rules.crawl_delay, self._config.max_crawl_delay_seconds)

    async def _rules(self, target: Target, visit: Visit) -> Rules:
        known = self._memory.rules.get(target.origin)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        # The whole host has a failure, and is asked once.
        if target.origin in visit.unreachable:
            raise visit.unreachable[target.origin].with_traceback(None)
        task = self._robots.get(target.origin)
        if task is None:
            task = self._robots[target.origin] = asyncio.create_task(self._load_rules(target))
            task.add_done_callback(lambda _: self._robots.pop(target.origin, None))
        try:
            return await asyncio.shield(task)
        except FetchError as error:
            visit.unreachable[target.origin] = error
            raise

    async def _load_rules(self, target: Target) -> Rules:
        config = self._config
        for attempt in range(config.retries + 1):
            try:
                rules = await self._request_rules(parse_url("/robots.txt", base=target.url))
            except TemporaryError as error:
                if attempt == config.retries or error.retry_after > config.max_retry_after_seconds:
                    raise TemporaryError(str(error), error.retry_after, is_spent=True) from error
                await self._wait(target.origin, attempt, error.retry_after)
            else:
                self._memory.rules[target.origin] = (time.monotonic() + CACHE_SECONDS, rules)
                return rules
        raise AssertionError("the last attempt returns or raises")

    async def _request_rules(self, target: Target) -> Rules:
        budget = _Budget(self._config.request_seconds)
        for _ in range(_MAX_ROBOTS_REDIRECTS + 1):
            check_literal(target.host, allow_private=self._config.allow_private)
            async with self._turn(target):
                answer = await self._get(target, budget, MAX_ROBOTS_BYTES + _SPARE_BYTES, None)
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
            host = self._hosts[target.origin] = _Host(asyncio.Semaphore(self.connections_per_host))
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
            async with self._places:
                yield

    def _check_closed(self, host: _Host) -> None:
        if host.closed_until - asyncio.get_running_loop().time() > self._config.max_retry_after_seconds:
            raise TemporaryError(host.closed_error, is_spent=True)

    async def _get(self, target: Target, budget: _Budget, max_bytes: int, visit: Visit | None) -> _Answer:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(budget.seconds):
                return await self._exchange(target, max_bytes, visit)
        except TimeoutError as error:
            raise TemporaryError(TIMED_OUT) from error
        except OSError as error:
            raise os_error(error) from error
        finally:
            budget.seconds -= loop.time() - start

    async def _exchange(self, target: Target, max_bytes: int, visit: Visit | None) -> _Answer:
        def choose(head: Head) -> Body | None:
            if visit is not None and is_opted_out(
                head.values(b"x-robots-tag"), self._config.agent_token, self._directives
            ):
                visit.opted_out.add(target.origin)
                raise OptedOutError(OPTED_OUT)
            if not 200 <= head.status < 300:
                return None
            return Body(head.get(b"content-encoding"), head.content_length, max_bytes, cut=visit is None)

        reader = await self._connections.get(target, choose)
        if reader.error is not None:
            raise reader.error
        head, body = reader.head, reader.body
        retry_after = parse_retry_after(head.get(b"retry-after"))
        return _Answer(head.status, head.get(b"location"), retry_after, b"" if body is None else body.read())

    async def _addresses(self, host: str) -> Sequence[str]:
        """Return where a host may be connected to."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return await self._resolver.addresses(host)
        return (host,)  # it was looked at when it was read: see `check_literal`


def _check_opt_out(target: Target, visit: Visit) -> None:
    if visit.refuses(target.url):
        raise PermanentError(MESSAGE)
    if target.origin in visit.opted_out:
        raise OptedOutError(OPTED_OUT)
