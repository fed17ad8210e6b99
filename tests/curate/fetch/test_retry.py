"""`retry` asks again where it may help, and changes nothing else."""

from pathlib import Path

import pytest

from curate.executor import Executor
from curate.fetch.retry import retry
from curate.store import Pool
from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.curate.fetch.test_download import config, files, picture, run, serve_rows, server, write_list  # noqa: F401
from tests.webserver import Route, WebServer


def test_only_temporary_failures_are_fetched_again(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:  # noqa: F811
    rows = serve_rows(server, 22)
    rows[2]["url"] = server.url("/none.jpg")
    rows[4]["url"] = server.add("/late.jpg", Route(picture(4), statuses=(503,)))
    rows[12]["url"] = server.add("/never.jpg", Route(picture(12), statuses=(500,)))
    urls = write_list(tmp_path / "a.jsonl", rows)
    pool = Pool(tmp_path / "pool")
    run(urls, pool, ray_session, retries=0)
    before = files(pool)
    digests = [pool.shard_header(shard).shard_digest for shard in pool.shards()]
    server.add("/late.jpg", picture(4))
    server.requests.clear()

    report = retry(pool, config(retries=0), executor=ray_session, progress=SilentProgress())
    assert (report.num_shards, report.num_shards_written, report.num_rows, report.num_successes) == (3, 2, 2, 1)
    assert {path for path in server.requests if path != "/robots.txt"} == {"/late.jpg", "/never.jpg"}
    after = files(pool)
    assert {name for name in before if before[name] != after[name]} == {"00000.tar", "00000.parquet"}
    assert [pool.shard_header(shard).shard_digest == digest for shard, digest in enumerate(digests)] == [
        False,
        True,
        True,
    ]
    # The pool is now what it would have been had the server been well.
    clean = Pool(tmp_path / "clean")
    run(urls, clean, ray_session, retries=0)
    assert files(clean) == after

    again = retry(pool, config(retries=0), executor=ray_session, progress=SilentProgress())
    assert (again.num_rows, again.num_successes, files(pool)) == (1, 0, after)


def test_nothing_to_do_asks_nobody(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:  # noqa: F811
    pool = Pool(tmp_path / "pool")
    run(write_list(tmp_path / "a.jsonl", serve_rows(server, 3)), pool, ray_session)
    server.requests.clear()
    report = retry(pool, config(), executor=ray_session, progress=SilentProgress())
    assert (report.num_shards, report.num_rows) == (1, 0)
    assert not server.requests


def test_a_tar_ahead_of_its_parquet_is_put_right(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:  # noqa: F811
    rows = serve_rows(server, 4)
    rows[1]["url"] = server.add("/late.jpg", Route(picture(1), statuses=(503, 200, 200)))
    pool = Pool(tmp_path / "pool")
    run(write_list(tmp_path / "a.jsonl", rows), pool, ray_session, retries=0)
    parquet = Path(pool.root) / "shards" / "00000.parquet"
    old = parquet.read_bytes()
    retry(pool, config(), executor=ray_session, progress=SilentProgress())
    good = files(pool)
    parquet.write_bytes(old)  # as a kill between tar and Parquet leaves it
    retry(pool, config(), executor=ray_session, progress=SilentProgress())
    assert files(pool) == good


def test_a_pool_that_was_never_downloaded(tmp_path: Path, ray_session: Executor) -> None:
    with pytest.raises(InputError, match="holds nothing that was downloaded"):
        retry(Pool(tmp_path / "pool"), config(), executor=ray_session, progress=SilentProgress())
