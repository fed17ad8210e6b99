"""What was taken down is never fetched again: not by a new list, a retry, a redirect or an import."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.executor import Executor
from curate.fetch.importing import ImportConfig, import_dir
from curate.fetch.ingest import load_plans
from curate.fetch.refusal import REFUSED, Refusal
from curate.fetch.retry import retry
from curate.fetch.transform import Transformed
from curate.forget import ForgetRequest, ForgetTargets, forget
from curate.forgotten import MESSAGE, Forgotten, add_forgotten
from curate.store import Pool
from curate.tar import TarWriter
from schemas.progress import SilentProgress
from tests.curate.fetch.test_download import config, picture, run, serve_rows, server, write_list  # noqa: F401
from tests.webserver import Route, WebServer


def statuses(pool: Pool) -> dict[str, tuple[str, str | None, str | None]]:
    """Return status, URL and caption of every row by uid."""
    rows = [row for shard in pool.shards() for row in pool.read_table(pool.shard_parquet(shard)).to_pylist()]
    return {row["uid"]: (row["status"], row["url"], row["caption"]) for row in rows}


def everything(pool: Pool) -> str:
    """Return all that a pool holds, tables decoded."""
    found = []
    for path in Path(pool.root).rglob("*"):
        if path.suffix == ".parquet":
            found.append(repr(pool.read_table(str(path)).to_pylist()))
        elif path.is_file():
            found.append(path.read_bytes().decode("latin-1"))
    return "\n".join(found)


@pytest.mark.timeout(300)
def test_a_new_list_brings_nothing_back(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:  # noqa: F811
    rows = serve_rows(server, 6)
    pool = Pool(tmp_path / "pool")
    urls = write_list(tmp_path / "a.jsonl", rows)
    run(urls, pool, ray_session)
    gone = str(rows[2]["url"])
    digest = hashlib.sha256(picture(4)).hexdigest()
    request = ForgetRequest(urls=(gone,), sha256=(digest,), domains=("127.0.0.2",))
    report = forget(pool, request, ForgetTargets())
    assert len(report.rows) == 2
    assert report.not_done[0].path == urls
    assert gone.partition("://")[2] not in everything(pool)
    server.requests.clear()
    # The list as it was has nothing to fetch.
    assert run(urls, pool, ray_session).num_rows == 0
    more = [
        {"url": f"{gone}#again", "caption": "alice in new words"},
        {"url": server.add("/copy-of-alice.jpg", picture(4)), "caption": "alice elsewhere"},
        {"url": server.url("/alice-2.jpg", host="127.0.0.2"), "caption": "alice on her own site"},
        {
            "url": server.add("/to-alice.jpg", Route(statuses=(302,), headers={"Location": gone})),
            "caption": "alice led to",
        },
        {"url": server.add("/fine.jpg", picture(9)), "caption": "something else"},
    ]
    second = run(write_list(tmp_path / "b.jsonl", more), pool, ray_session)
    assert second.messages == {MESSAGE: 4, "success": 1}
    found = list(statuses(pool).values())[6:]
    assert found == [("forgotten", None, None)] * 4 + [("success", more[4]["url"], "something else")]
    assert {path for path in server.requests if path != "/robots.txt"} == {
        *("/copy-of-alice.jpg", "/to-alice.jpg", "/fine.jpg"),
    }
    assert "alice" not in everything(pool)
    server.requests.clear()
    retry(pool, config(), executor=ray_session, progress=SilentProgress())
    assert not server.requests


@pytest.mark.timeout(300)
def test_a_retry_leaves_them_alone(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:  # noqa: F811
    rows = serve_rows(server, 4)
    rows[1]["url"] = server.add("/late.jpg", Route(picture(1), statuses=(503, 200)))
    rows[2]["url"] = server.add("/alice.jpg", Route(picture(2), statuses=(503, 200)))
    pool = Pool(tmp_path / "pool")
    run(write_list(tmp_path / "a.jsonl", rows), pool, ray_session, retries=0)
    forget(pool, ForgetRequest(urls=(str(rows[2]["url"]),)), ForgetTargets())
    report = retry(pool, config(retries=0), executor=ray_session, progress=SilentProgress())
    assert (report.num_rows, report.num_successes) == (1, 1)
    assert (server.requests["/late.jpg"], server.requests["/alice.jpg"]) == (2, 1)
    assert [status for status, _, _ in statuses(pool).values()] == ["success", "success", "forgotten", "success"]


def test_planned_rows_are_refused_and_emptied(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    digest = hashlib.sha256(b"alice").hexdigest()
    add_forgotten(pool, Forgotten.of(urls=["http://a.org/1.jpg"], uids=["c" * 32], sha256=[digest]))
    rows = pa.table({
        "uid": ["a" * 32, "b" * 32, "c" * 32, "d" * 32, "e" * 32],
        "url": ["https://a.org/1.jpg", "https://b.org/2.jpg", "https://c.org/3.jpg", None, "https://e.org/5.jpg"],
        "caption": ["1", "2", "3", None, "5"],
        "sha256": pa.array([None] * 5, pa.string()),
    })
    pool.commit_table("rows.parquet", rows)
    refusal = Refusal(pool, "rows.parquet", rows, range(5))
    assert refusal.allowed == [1, 4]
    assert refusal.refuses("http://a.org/1.jpg")
    good = Transformed("success", sha256="f" * 64)
    found = refusal.complete({1: good, 4: Transformed("success", sha256=digest)})
    assert found == {0: REFUSED, 1: good, 2: REFUSED, 3: REFUSED, 4: REFUSED}
    planned = pool.read_table("rows.parquet")
    assert planned["url"].to_pylist() == [None, "https://b.org/2.jpg", None, None, None]
    assert planned["uid"].equals(rows["uid"])
    # Nothing to hide: nothing is written.
    before = (tmp_path / "rows.parquet").stat().st_mtime_ns
    Refusal(pool, "rows.parquet", planned, [1]).complete({1: good})
    assert (tmp_path / "rows.parquet").stat().st_mtime_ns == before


@pytest.mark.timeout(300)
def test_imports_leave_them_out(tmp_path: Path, ray_session: Executor) -> None:
    pool = Pool(tmp_path / "pool")
    folder, tars = tmp_path / "pictures", tmp_path / "tars"
    folder.mkdir()
    tars.mkdir()
    add_forgotten(pool, Forgotten.of(sha256=[hashlib.sha256(picture(1)).hexdigest()], urls=["http://a.org/alice.jpg"]))
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text("alice" if number == 1 else f"caption {number}")
    with (tars / "0.tar").open("wb") as file:
        writer = TarWriter(file)
        for number, url in ((5, "http://a.org/5.jpg"), (6, "http://A.org/alice.jpg"), (1, "http://b.org/x.jpg")):
            key = "alice" if number != 5 else "other"
            writer.add(f"{key}-{number}.jpg", picture(number))
            writer.add(f"{key}-{number}.json", json.dumps({"url": url, "caption": f"{key} {number}"}).encode())
        writer.close()
    for source in (folder, tars):
        import_dir(str(source), pool, ImportConfig(), progress=SilentProgress(), executor=ray_session)
    found = [status for status, _, _ in statuses(pool).values()]
    assert found == ["success", "forgotten", "success", "success", "forgotten", "forgotten"]
    held = everything(pool)
    assert "alice" not in held
    assert "caption 2" in held
    # What the pool had before it was asked for goes as well, with its name in the plan.
    report = forget(pool, ForgetRequest(sha256=(hashlib.sha256(picture(2)).hexdigest(),)), ForgetTargets())
    assert len(report.rows) == 1
    assert "caption 2" not in everything(pool)
    assert "2.jpg" not in everything(pool)
    assert sum(plan.num_samples for plan in load_plans(pool).values()) == 6
    assert np.array(pool.read_table(pool.shard_parquet(0))["uid"]).shape == (3,)
