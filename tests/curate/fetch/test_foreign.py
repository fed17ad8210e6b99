"""img2dataset behind its fence gives the pool that our own fetcher gives."""

import gzip
from pathlib import Path

import pyarrow as pa

from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.foreign import fetch_rows_with_img2dataset
from curate.fetch.writer import Spool
from curate.store import Pool
from tests.curate.fetch.test_download import files, picture, run, serve_rows, server, write_list  # noqa: F401
from tests.webserver import Route, WebServer


def hostile_urls(server: WebServer) -> list[str]:  # noqa: F811
    """One URL of each kind that img2dataset alone gets wrong, and some that it does not."""
    image = picture(1)
    server.add("/robots.txt", b"User-agent: winnow\nDisallow: /private\n", host="127.0.0.1")
    server.redirect("/loop", "/loop")
    return [
        server.url("/none.jpg"),
        server.add("/forbidden.jpg", Route(image, statuses=(403,))),
        server.add(
            "/busy.jpg", Route(image, statuses=(429, 200), headers={"Retry-After": "1"}, error_headers_only=True)
        ),
        server.add("/down.jpg", Route(image, statuses=(500,))),
        server.add("/drip.jpg", Route(image, drip=0.05)),
        server.add("/hang.jpg", Route(hang=True)),
        server.add("/short.jpg", Route(image, declared_length=len(image) + 9)),
        server.add("/private.jpg", image),
        server.redirect("/moved.jpg", "/end.jpg"),
        server.add("/end.jpg", image),
        server.url("/loop"),
        server.redirect("/etc.jpg", "file:///etc/passwd"),
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:image/png;base64,AAAA",
        "",
        server.add("/gzip.jpg", Route(gzip.compress(image), headers={"Content-Encoding": "gzip"})),
        server.add("/bomb.jpg", Route(gzip.compress(b"\0" * 10**8), headers={"Content-Encoding": "gzip"})),
        server.add("/large.jpg", b"\0" * 2_000_000),
        server.add("/empty.jpg", b""),
        server.add("/page.html", b"<html>"),
        server.add("/cut.jpg", image[: len(image) // 2]),
        server.url("/out.jpg", "127.0.0.2"),
        server.url("/in.jpg", "127.0.0.2"),
        server.url("/\u00e4 \u00f6.jpg"),
        "http://none.invalid/x.jpg",
        f"http://127.1:{server.port}/end.jpg",
    ]


def test_both_fetchers_make_the_same_pool(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:  # noqa: F811
    rows = serve_rows(server, 20)
    rows += [{"url": url, "caption": f"odd {i}", "n": i} for i, url in enumerate(hostile_urls(server))]
    server.add("/out.jpg", Route(picture(2), headers={"X-Robots-Tag": "noimageai"}))
    server.add("/in.jpg", picture(3))
    server.add("/%C3%A4%20%C3%B6.jpg", picture(4))
    urls = write_list(tmp_path / "a.jsonl", rows)
    found = {}
    for fetcher in ("winnow", "img2dataset"):
        pool = Pool(tmp_path / fetcher)
        server.requests.clear()
        report = run(urls, pool, ray_session, fetcher=fetcher, shard_size=30, request_seconds=2.0, max_bytes=1_000_000)
        found[fetcher] = (
            [pool.read_table(pool.shard_parquet(shard)).to_pylist() for shard in pool.shards()],
            files(pool),
        )
        assert report.num_rows == len(rows)
        assert server.requests["/none.jpg"] == 1
        assert server.requests["/private.jpg"] == 0
        assert server.requests["/down.jpg"] == 2
        assert all("Winnow" in agent for agent in server.user_agents)
    assert found["img2dataset"] == found["winnow"]
    statuses = [row["status"] for shard in found["winnow"][0] for row in shard]
    assert {status: statuses.count(status) for status in set(statuses)} == {
        "success": 25,
        "failed_to_download": 19,
        "failed_to_resize": 3,
    }


def test_private_addresses_are_refused(server: WebServer) -> None:  # noqa: F811
    server.redirect("/r", server.url("/x"))
    urls = [server.add("/x", picture(0)), server.url("/r", "localhost"), f"http://0x7f.1:{server.port}/x"]
    rows = pa.table({"url": urls, "uid": ["0" * 32] * 3, "sha256": pa.nulls(3, pa.string())})
    spool = Spool()
    results = fetch_rows_with_img2dataset(
        rows, range(3), DownloadConfig(retries=0, request_seconds=2.0), spool, lambda result: None
    )
    spool.close()
    assert [result.error_message for result in results.values()] == ["Refused: private address"] * 3
    assert not server.requests


def test_the_deadline_ends_it(server: WebServer) -> None:  # noqa: F811
    urls = [server.add("/ok", picture(0)), *(server.add(f"/{i}", Route(picture(0), delay=1.0)) for i in range(60))]
    rows = pa.table({"url": urls, "uid": ["0" * 32] * 61, "sha256": pa.nulls(61, pa.string())})
    config = DownloadConfig(allow_private=True, respect_robots=False, connections=2, shard_seconds=12.0, retries=0)
    spool = Spool()
    results = fetch_rows_with_img2dataset(rows, range(61), config, spool, lambda result: None)
    spool.close()
    messages = [result.error_message for result in results.values()]
    assert messages[0] is None
    assert messages.count("shard deadline exceeded") > 30
