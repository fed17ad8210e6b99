"""A worker's shards: side by side, each for itself, none fetched twice."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from curate.fetch import rows as rows_module
from curate.fetch.config import DownloadConfig
from curate.fetch.shard import PROGRESS_FOLDER, ShardTask, fetch_shards, process_memory
from curate.fetch.transform import Transformed
from curate.store import Pool
from schemas.sample import shard_name
from tests.curate.fetch.test_download import picture
from tests.webserver import Route, WebServer


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running
    process_memory.cache_clear()


def make_tasks(pool: Pool, shards: Sequence[Sequence[str]], **options: object) -> list[ShardTask]:
    """Write the rows of shards, which are lists of URLs."""
    config = DownloadConfig(allow_private=True, image_size=24, backoff_seconds=0.05, retries=0, **options)  # type: ignore[arg-type]
    tasks = []
    for shard, urls in enumerate(shards):
        table = pa.table({
            "uid": [hashlib.md5(url.encode()).hexdigest() for url in urls],
            "num_occurrences": pa.array([1] * len(urls), pa.int32()),
            "caption": pa.array(["text"] * len(urls), pa.string()),
            "url": pa.array(urls, pa.string()),
            "sha256": pa.array([None] * len(urls), pa.string()),
        })
        path = f"ingest/{shard}.parquet"
        pool.commit_table(path, table)
        tasks.append(
            ShardTask(
                pool=pool, shard=shard, rows_path=path, shard_size=10, has_captions=True, config=config, connections_per_host=4
            )
        )  # fmt: skip
    return tasks


def serve(server: WebServer, num_shards: int, num_rows: int) -> list[list[str]]:
    return [
        [server.add(f"/{shard}-{row}.jpg", picture(10 * shard + row)) for row in range(num_rows)]
        for shard in range(num_shards)
    ]


def read_stats(pool: Pool, shard: int) -> dict[str, float]:
    content: dict[str, float] = json.loads(pool.read_bytes(f"shards/{shard_name(shard)}_stats.json"))
    return content


def test_the_next_shard_starts_before_the_last_is_whole(server: WebServer, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    shards = serve(server, 5, 6)
    shards[0][3] = server.add("/slow.jpg", Route(picture(3), delay=1.0))
    counts = fetch_shards(make_tasks(pool, shards))
    assert [(count.num_rows, count.num_successes) for count in counts] == [(6, 6)] * 5
    stats = [read_stats(pool, shard) for shard in range(5)]
    assert stats[1]["start_time"] < stats[0]["end_time"]
    # ... but no more than two are open at once.
    for index, later in enumerate(stats):
        assert sum(earlier["end_time"] > later["start_time"] for earlier in stats[:index]) <= 1
    assert server.requests["/robots.txt"] == 1
    assert server.max_concurrency["127.0.0.1"] <= 4
    assert pool.list_names(PROGRESS_FOLDER) == []


def test_a_shard_waits_while_every_connection_is_in_use(server: WebServer, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    fetch_shards(make_tasks(pool, serve(server, 2, 10), connections=1))
    first = max(moment for row in range(9) for moment in server.times[f"/0-{row}.jpg"])
    second = min(moment for row in range(10) for moment in server.times[f"/1-{row}.jpg"])
    assert first < second


def test_shards_have_the_bytes_they_have_alone(server: WebServer, tmp_path: Path) -> None:
    shards = serve(server, 3, 5)
    shards[1][2] = "ftp://example.org/x.jpg"
    together, alone = Pool(tmp_path / "together"), Pool(tmp_path / "alone")
    fetch_shards(make_tasks(together, shards))
    for task in make_tasks(alone, shards):
        fetch_shards([task])
    for shard in range(3):
        for ending in (".tar", ".parquet"):
            path = f"shards/{shard_name(shard)}{ending}"
            assert together.read_bytes(path) == alone.read_bytes(path)


def test_what_a_worker_committed_before_it_died_is_not_fetched_again(server: WebServer, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    shards = serve(server, 3, 4)
    shards[1][0] = server.url("/none.jpg")
    tasks = make_tasks(pool, shards)
    first = fetch_shards(tasks[:2])
    server.requests.clear()
    again = fetch_shards(tasks)
    assert again[:2] == first
    assert again[1].messages == {"success": 3, "HTTP Error 404: Not Found": 1}
    assert {path for path in server.requests if path != "/robots.txt"} == {f"/2-{row}.jpg" for row in range(4)}


def test_a_shard_that_fails_keeps_none_from_its_commit(server: WebServer, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    tasks = make_tasks(pool, serve(server, 4, 3))
    (tmp_path / "pool" / "shards" / "00001.tar").mkdir(parents=True)
    (tmp_path / "pool" / "ingest" / "2.parquet").unlink()
    with pytest.raises(IsADirectoryError, match=r"00001\.tar"):
        fetch_shards(tasks)
    assert pool.shards() == [0, 3]
    assert pool.list_names(PROGRESS_FOLDER) == []


def test_an_error_in_a_decoding_thread_is_the_shards(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = rows_module.transform
    broken = picture(2)

    def break_one(data: bytes, expected: str | None, config: DownloadConfig) -> Transformed:
        if data == broken:
            raise RuntimeError("a decoder's fault")
        return transform(data, expected, config)

    monkeypatch.setattr(rows_module, "transform", break_one)
    pool = Pool(tmp_path / "pool")
    with pytest.raises(RuntimeError, match="a decoder's fault"):
        fetch_shards(make_tasks(pool, serve(server, 2, 5)))
    assert pool.shards() == [1]


def test_a_host_opts_out_of_the_shard_that_it_told(server: WebServer, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    shards = serve(server, 2, 4)
    shards[0][3] = server.add("/out.jpg", Route(picture(1), headers={"X-Robots-Tag": "noai"}))
    first, second = fetch_shards(make_tasks(pool, shards))
    assert first.messages == {"Use of image disallowed by X-Robots-Tag directive": 4}
    assert second.messages == {"success": 4}


def test_a_robots_txt_that_fails_is_asked_for_again_by_the_next_shard(server: WebServer, tmp_path: Path) -> None:
    server.add("/robots.txt", Route(b"", statuses=(503, 200)))
    pool = Pool(tmp_path / "pool")
    tasks = make_tasks(pool, serve(server, 2, 4))
    (first,) = fetch_shards(tasks[:1])
    assert first.messages == {"robots.txt unreachable: HTTP Error 503: Service Unavailable": 4}
    (second,) = fetch_shards(tasks[1:])
    assert second.messages == {"success": 4}


def test_more_bytes_than_may_wait_for_a_decoder(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.fetch.decoder._MAX_WAITING_BYTES", 100)
    (counts,) = fetch_shards(make_tasks(Pool(tmp_path / "pool"), serve(server, 1, 10)))
    assert counts.messages == {"success": 10}
