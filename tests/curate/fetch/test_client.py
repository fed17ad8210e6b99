"""The polite client against a server that is not."""

import asyncio
import email.utils
import gzip
import itertools
import time
import zlib
from collections.abc import Iterator

import pytest

from curate.fetch import client as client_module
from curate.fetch.addresses import parse_url
from curate.fetch.body import Inflater
from curate.fetch.client import Client, Memory, Visit
from curate.fetch.config import DownloadConfig
from curate.fetch.errors import FetchError, PermanentError
from tests.webserver import Route, WebServer

BODY = b"picture" * 100


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


def fetch(*urls: str, memory: Memory | None = None, per_host: int = 8, **options: object) -> list[bytes | str]:
    """Return the body or the error message of each URL, fetched side by side."""
    settings: dict[str, object] = {"allow_private": True, "backoff_seconds": 0.05, "request_seconds": 3.0, **options}

    async def run() -> list[bytes | str]:
        async with Client(DownloadConfig(**settings), memory or Memory(), connections_per_host=per_host) as client:
            visit = Visit()

            async def one(url: str) -> bytes | str:
                try:
                    return await client.fetch(parse_url(url), "0" * 32, set(), visit)
                except FetchError as error:
                    return str(error)

            return list(await asyncio.gather(*(one(url) for url in urls)))

    return asyncio.run(run())


def test_a_picture_arrives_and_connections_are_reused(server: WebServer) -> None:
    urls = [server.add(f"/{i}", BODY + b"%d" % i) for i in range(40)]
    assert fetch(*urls, per_host=4) == [BODY + b"%d" % i for i in range(40)]
    assert server.max_concurrency["127.0.0.1"] <= 4
    assert server.num_connections <= 5
    assert server.user_agents == {"Winnow/0.1 (image-text dataset builder)"}
    assert server.requests["/robots.txt"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_permanent_errors_are_never_asked_again(server: WebServer, status: int) -> None:
    (message,) = fetch(server.add("/x", Route(BODY, statuses=(status,))), retries=3)
    assert str(message).startswith(f"HTTP Error {status}: ")
    assert server.requests["/x"] == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_errors_are(server: WebServer, status: int) -> None:
    assert fetch(server.add("/x", Route(BODY, statuses=(status, status, 200))), retries=2) == [BODY]
    assert server.requests["/x"] == 3
    (message,) = fetch(server.add("/y", Route(BODY, statuses=(status,))), retries=1)
    assert str(message).startswith(f"HTTP Error {status}: ")
    assert server.requests["/y"] == 2


def test_retry_after_is_waited_for_by_the_whole_host(server: WebServer) -> None:
    for value in ("1", email.utils.formatdate(time.time() + 3, usegmt=True)):
        server.times.clear()
        busy = server.add(
            "/busy", Route(BODY, statuses=(429, 200), headers={"Retry-After": value}, error_headers_only=True)
        )
        server.requests.clear()
        assert fetch(busy, retries=1, backoff_seconds=0.0) == [BODY]
        first, second = server.times["/busy"]
        assert second - first > 0.9


def test_a_wait_that_is_too_long_is_left_for_later(server: WebServer) -> None:
    busy = server.add("/busy", Route(BODY, statuses=(503,), headers={"Retry-After": "3600"}))
    start = time.monotonic()
    first = fetch(busy, retries=3)
    assert first == ["HTTP Error 503: Service Unavailable"]
    assert server.requests["/busy"] == 1
    assert time.monotonic() - start < 2


def test_timeouts_cover_silence_and_dripping(server: WebServer) -> None:
    urls = [
        server.add("/hang", Route(hang=True)),
        server.add("/drip", Route(BODY, drip=0.05)),
        server.add("/slow", Route(BODY, delay=5)),
    ]
    start = time.monotonic()
    assert fetch(*urls, retries=0, request_seconds=0.6) == ["timed out"] * 3
    assert time.monotonic() - start < 3


def test_connections_that_break(server: WebServer) -> None:
    results = fetch(
        server.add("/reset", Route(BODY, reset_after=50)),
        server.add("/short", Route(BODY, declared_length=len(BODY) + 9)),
        server.add("/dropped", Route(BODY, drop_connections=1)),
        "http://127.0.0.1:9/refused",
        retries=1,
    )
    assert str(results[0]).startswith(("IncompleteRead", "Connection reset"))
    assert results[1] == "IncompleteRead: the body ended early"
    assert results[2] == BODY  # the second attempt
    assert results[3] == "Connection refused"


def test_redirects_are_followed_and_bounded(server: WebServer) -> None:
    server.add("/end", BODY)
    for i in range(8):
        server.redirect(f"/r{i}", f"/r{i + 1}" if i < 7 else "/end", status=(301, 302, 303, 307, 308)[i % 5])
    assert fetch(server.url("/r4"), max_redirects=4) == [BODY]
    assert fetch(server.url("/r3"), max_redirects=4) == ["Too many redirects"]
    assert fetch(server.redirect("/loop", "/loop")) == ["Too many redirects"]
    assert server.requests["/loop"] == 6
    assert str(fetch(server.redirect("/file", "file:///etc/passwd"))[0]).startswith("URL scheme not allowed")
    assert fetch(server.redirect("/nowhere", "http://a b/")) == ["Invalid URL"]


def test_private_addresses_are_refused_before_and_after_redirects(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/x", BODY)
    names = [
        url,
        f"http://localhost:{server.port}/x",
        f"http://[::ffff:127.0.0.1]:{server.port}/x",
        f"http://0x7f.1:{server.port}/x",
    ]
    assert fetch(*names, allow_private=False, retries=0)[:3] == ["Refused: private address"] * 3
    assert not server.requests
    # A public host (here: one address let through) that redirects to a private one.
    allowed = client_module.check_literal
    monkeypatch.setattr(
        client_module,
        "check_literal",
        lambda host, allow_private: None if host == "127.0.0.7" else allowed(host, allow_private=allow_private),
    )
    server.redirect("/r", url)
    assert fetch(server.url("/r", "127.0.0.7"), allow_private=False) == ["Refused: private address"]
    assert server.requests["/x"] == 0


def test_a_name_that_changes_its_address_gains_nothing(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    real = socket.getaddrinfo
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    asked: list[str] = []

    def rebinding(host: object, port: object, *arguments: object, **options: object) -> object:
        if host == "rebind.example":
            asked.append(str(host))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port or 0))]
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    memory = Memory()
    (message,) = fetch(
        f"http://rebind.example:{server.port}/x", memory=memory, allow_private=False, retries=0, request_seconds=0.5
    )
    assert message in {
        "timed out",
        "Connection refused",
        "Network is unreachable",
        "No route to host",
        "Connection failed",
    }
    # Asked once, connected to that answer; when the answer has expired, the new one is checked as the first was.
    assert asked == ["rebind.example"]
    memory.dns.answers.clear()
    assert fetch(f"http://rebind.example:{server.port}/x", memory=memory, allow_private=False) == [
        "Refused: private address"
    ]
    assert not server.requests


def test_sizes_are_limited(server: WebServer) -> None:
    limit = "body larger than 1000 bytes"
    results = fetch(
        server.add("/large", b"x" * 1001),
        server.add("/exact", b"x" * 1000),
        server.add("/claims", Route(b"x", declared_length=10**12)),
        server.add("/bomb", Route(gzip.compress(b"\0" * 10**7), headers={"Content-Encoding": "gzip"})),
        server.add("/gzip", Route(gzip.compress(b"x" * 1000), headers={"Content-Encoding": "gzip"})),
        server.add("/deflate", Route(zlib.compress(b"y" * 10), headers={"Content-Encoding": "deflate"})),
        server.add("/br", Route(b"x", headers={"Content-Encoding": "br"})),
        server.add("/lies", Route(b"x" * 10, headers={"Content-Encoding": "gzip"})),
        server.add("/headers", Route(b"x", headers={"X-Long": "y" * 20_000})),
        max_bytes=1000,
        retries=0,
    )
    assert results == [
        limit, b"x" * 1000, limit, limit, b"x" * 1000, b"y" * 10, "Content-Encoding not supported", "Content-Encoding is corrupt",
        "Bad HTTP response",
    ]  # fmt: skip


def test_robots_txt_is_asked_first_and_once(server: WebServer) -> None:
    server.add("/robots.txt", b"User-agent: *\nDisallow: /no\n")
    urls = [server.add(f"/no{i}", BODY) for i in range(5)] + [server.add(f"/yes{i}", BODY) for i in range(5)]
    memory = Memory()
    assert fetch(*urls, memory=memory) == ["Disallowed by robots.txt"] * 5 + [BODY] * 5
    assert fetch(*urls[:6], memory=memory) == ["Disallowed by robots.txt"] * 5 + [BODY]
    assert server.requests["/robots.txt"] == 1
    assert not [path for path in server.requests if path.startswith("/no")]
    assert fetch(urls[0], respect_robots=False) == [BODY]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((404,), BODY),
        ((403,), BODY),
        ((500,), "robots.txt unreachable: HTTP Error 500: Internal Server Error"),
        ((429,), "robots.txt unreachable: HTTP Error 429: Too Many Requests"),
        ((503, 200), "Disallowed by robots.txt"),
    ],
)
def test_robots_txt_that_is_not_there(server: WebServer, statuses: tuple[int, ...], expected: bytes | str) -> None:
    server.add("/robots.txt", Route(b"User-agent: winnow\nDisallow: /", statuses=statuses))
    url = server.add("/x", BODY)
    assert fetch(url, url, url, retries=1) == [expected] * 3
    assert server.requests["/robots.txt"] <= 2


def test_robots_txt_behind_redirects_and_of_redirect_targets(server: WebServer) -> None:
    server.redirect("/robots.txt", "/elsewhere.txt", host="127.0.0.1")
    server.add("/elsewhere.txt", b"User-agent: *\nDisallow: /no")
    server.add("/robots.txt", b"User-agent: *\nDisallow: /", host="127.0.0.5")
    assert fetch(server.add("/no", BODY)) == ["Disallowed by robots.txt"]
    server.redirect("/away", server.url("/x", "127.0.0.5"))
    assert fetch(server.url("/away")) == ["Disallowed by robots.txt"]
    assert server.host_requests["127.0.0.5 /x"] == 0
    server.redirect("/robots.txt", "/robots.txt", host="127.0.0.6")
    server.add("/y", BODY)
    assert fetch(server.url("/y", "127.0.0.6")) == [BODY]


def test_crawl_delay_spaces_requests(server: WebServer) -> None:
    server.add("/robots.txt", b"User-agent: *\nCrawl-delay: 0.4\n")
    urls = [server.add(f"/{i}", BODY) for i in range(4)]
    fetch(*urls)
    times = sorted(moment for i in range(4) for moment in server.times[f"/{i}"])
    assert all(later - earlier > 0.3 for earlier, later in itertools.pairwise(times))
    start = time.monotonic()
    fetch(*urls, max_crawl_delay_seconds=0.0)
    assert time.monotonic() - start < 1


def test_an_opt_out_holds_for_the_host(server: WebServer) -> None:
    text = "Use of image disallowed by X-Robots-Tag directive"
    server.add("/out", Route(BODY, headers={"X-Robots-Tag": ("nofollow", "NoAI, noarchive")}))
    server.add("/in", BODY)
    assert fetch(server.url("/out"), per_host=1) == [text]
    assert fetch(server.url("/out"), server.url("/in"), server.url("/in", "127.0.0.4"), per_host=1) == [
        text,
        text,
        BODY,
    ]
    assert server.host_requests["127.0.0.1 /in"] == 0
    other = server.add("/other", Route(BODY, headers={"X-Robots-Tag": "otherbot: noai"}))
    assert fetch(other) == [BODY]
    assert fetch(other, user_agent="OtherBot/2.0 (x)") == [text]
    assert fetch(server.url("/out"), disallowed_directives=()) == [BODY]


def test_one_slow_host_does_not_stop_the_others(server: WebServer) -> None:
    slow = [server.add(f"/slow{i}", Route(BODY, delay=0.5), host="127.0.0.2") for i in range(12)]
    quick = [server.add(f"/quick{i}", BODY, host="127.0.0.3") for i in range(12)]
    fetch(*slow, *quick, connections=4, per_host=2, respect_robots=False)
    last_quick = max(moment for i in range(12) for moment in server.times[f"/quick{i}"])
    assert last_quick - min(server.times["/slow0"]) < 1.5
    assert server.max_concurrency["127.0.0.2"] == 2


def test_inflater_counts_across_chunks() -> None:
    inflater = Inflater("gzip", 100)
    data = gzip.compress(b"x" * 100)
    assert b"".join(inflater.feed(data[i : i + 1]) for i in range(len(data))) == b"x" * 100
    with pytest.raises(PermanentError, match="larger than 100"):
        Inflater("gzip", 100).feed(gzip.compress(b"x" * 101))
    with pytest.raises(PermanentError, match="larger than 3"):
        Inflater("", 3).feed(b"abcd")
