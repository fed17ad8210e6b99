"""`download` end to end: layout, order, resume, kills."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.download import DownloadReport, download, group_shards
from curate.store import Pool
from schemas.errors import InputError, ShardError
from schemas.progress import SilentProgress
from schemas.sample import SHARD_DIGEST_KEY, UID_DIGEST_KEY, sample_key, shard_digest
from schemas.uid import digest_uids
from tests.kill.processes import Process, descendants
from tests.webserver import Route, WebServer

ROOT = Path(__file__).parents[3]


def picture(index: int, width: int = 48, height: int = 32) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


class Recorder(SilentProgress):
    """Keeps what a progress bar would show."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0
        self.fields: dict[str, str] = {}
        self.closed = False

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.total = total

    def advance(self, amount: int, **fields: str) -> None:
        self.done += amount
        self.fields = fields

    def close(self) -> None:
        self.closed = True


def config(**options: object) -> DownloadConfig:
    return DownloadConfig(**{
        "allow_private": True, "image_size": 24, "shard_size": 10, "backoff_seconds": 0.05, "request_seconds": 5.0, "retries": 1, **options,
    })  # fmt: skip


def write_list(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def serve_rows(server: WebServer, count: int) -> list[dict[str, object]]:
    return [{"url": server.add(f"/{i}.jpg", picture(i)), "caption": f"picture {i}", "n": i} for i in range(count)]


def files(pool: Pool) -> dict[str, bytes]:
    """Every file that must be the same whenever the same list is downloaded."""
    folder = Path(pool.root) / "shards"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith("_stats.json")}


def run(urls: str, pool: Pool, executor: Executor, **options: object) -> DownloadReport:
    return download(urls, pool, config(**options), executor=executor, progress=SilentProgress())


def test_the_layout_is_img2datasets(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    rows = serve_rows(server, 23)
    rows[3]["url"] = server.url("/none.jpg")
    rows[4]["url"] = server.add("/broken.jpg", b"<html>")
    rows[5]["caption"] = None
    pool, progress = Pool(tmp_path / "pool"), Recorder()
    report = download(write_list(tmp_path / "a.jsonl", rows), pool, config(), executor=ray_session, progress=progress)
    assert (report.num_shards, report.num_shards_written, report.num_rows, report.num_successes) == (3, 3, 23, 21)
    assert report.messages["HTTP Error 404: Not Found"] == 1
    assert (progress.total, progress.done, progress.closed) == (23, 23, True)
    assert progress.fields["success"] == "91.3%"
    assert "HTTP Error 404: Not Found (1)" in progress.fields["errors"]
    assert sorted(path.name for path in (tmp_path / "pool" / "shards").iterdir()) == [
        f"{shard:05d}{ending}" for shard in range(3) for ending in (".parquet", ".tar", "_stats.json")
    ]
    table = pool.read_table(pool.shard_parquet(0))
    assert table.column_names == [
        "uid", "num_occurrences", "n", "caption", "url", "key", "status", "error_message", "width", "height", "original_width",
        "original_height", "exif", "sha256",
    ]  # fmt: skip
    assert table["n"].to_pylist() == list(range(10))
    assert [table.schema.field(name).type for name in ("width", "key", "sha256")] == [
        pa.int32(),
        pa.string(),
        pa.string(),
    ]
    assert table["status"].to_pylist()[3:5] == ["failed_to_download", "failed_to_resize"]
    assert table["width"].to_pylist()[3] is None
    header = pool.shard_header(0)
    assert (header.shard_digest, header.uid_digest) == (shard_digest(table), digest_uids(table["uid"].to_pylist()))
    assert set(table.schema.metadata) >= {SHARD_DIGEST_KEY, UID_DIGEST_KEY}

    with tarfile.open(tmp_path / "pool" / "shards" / "00000.tar") as tar:
        members = tar.getmembers()
        expected = [f"{sample_key(0, i, 10)}.{e}" for i in range(10) if i not in (3, 4) for e in ("jpg", "json", "txt")]
        assert [member.name for member in members] == expected
        assert {(m.mtime, m.uname, m.mode, m.type, tuple(m.pax_headers)) for m in members} == {
            (0, "bigdata", 0o444, tarfile.REGTYPE, ())
        }
        texts = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    assert texts["000005.txt"] == b""
    assert texts["000006.txt"] == b"picture 6"
    sample = json.loads(texts["000006.json"])
    assert texts["000006.json"].decode() == json.dumps(sample, indent=4)
    assert list(sample) == table.column_names
    assert sample == table.slice(6, 1).to_pylist()[0]
    stats = json.loads((tmp_path / "pool" / "shards" / "00000_stats.json").read_text())
    assert list(stats) == [
        "count", "successes", "failed_to_download", "failed_to_resize", "duration", "start_time", "end_time", "status_dict",
    ]  # fmt: skip
    assert (stats["count"], stats["successes"], stats["failed_to_download"], stats["failed_to_resize"]) == (10, 8, 1, 1)
    assert stats["status_dict"]["success"] == 8


def test_stock_readers_read_the_shards(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    import webdataset
    from datasets import load_dataset

    pool = Pool(tmp_path / "pool")
    run(write_list(tmp_path / "a.jsonl", serve_rows(server, 12)), pool, ray_session)
    tars = [pool.locate(f"shards/{shard:05d}.tar") for shard in range(2)]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [sample["txt"] for sample in samples] == [f"picture {i}" for i in range(12)]
    assert samples[0]["jpg"].shape == (24, 24, 3)
    found = load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
    assert found[3]["json"]["url"] == server.url("/3.jpg")
    assert found[3]["jpg"].size == (24, 24)


def test_a_second_run_does_nothing_and_a_longer_list_appends(
    server: WebServer, tmp_path: Path, ray_session: Executor
) -> None:
    rows = serve_rows(server, 25)
    pool = Pool(tmp_path / "pool")
    urls = write_list(tmp_path / "a.jsonl", rows[:15])
    run(urls, pool, ray_session)
    before = files(pool)
    server.requests.clear()
    report = run(urls, pool, ray_session)
    assert (report.num_shards, report.num_shards_written, sum(server.requests.values())) == (2, 0, 0)
    assert run(write_list(tmp_path / "b.jsonl", rows), pool, ray_session).num_rows == 10
    after = files(pool)
    assert {name: after[name] for name in before} == before
    urls_found = [url for s in pool.shards() for url in pool.read_table(pool.shard_parquet(s))["url"].to_pylist()]
    assert urls_found == [row["url"] for row in rows]
    with pytest.raises(InputError, match="image_size 24"):
        run(urls, pool, ray_session, image_size=25)


def test_equal_pairs_are_one_sample(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    rows = serve_rows(server, 3)
    pool = Pool(tmp_path / "pool")
    run(
        write_list(tmp_path / "a.jsonl", [rows[0], rows[1], rows[0], {**rows[0], "caption": "another"}]),
        pool,
        ray_session,
    )
    table = pool.read_table(pool.shard_parquet(0))
    assert table["num_occurrences"].to_pylist() == [2, 1, 1]
    assert len(set(table["uid"].to_pylist())) == 3


def test_expected_hashes_and_kept_originals(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    import hashlib

    rows = serve_rows(server, 2)
    for row, digest in zip(rows, (hashlib.sha256(picture(0)).hexdigest(), "0" * 64), strict=True):
        row["sha256"] = digest
    pool = Pool(tmp_path / "pool")
    run(write_list(tmp_path / "a.jsonl", rows), pool, ray_session, resize_mode="no", keep_original=True)
    assert pool.read_table(pool.shard_parquet(0))["error_message"].to_pylist() == [None, "hash mismatch"]
    with tarfile.open(pool.locate("shards/00000.tar")) as tar:
        assert tar.extractfile("000000.jpg").read() == picture(0)  # type: ignore[union-attr]


def test_a_list_without_captions_has_no_txt(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    (tmp_path / "a.txt").write_text("\n".join(str(row["url"]) for row in serve_rows(server, 2)))
    pool = Pool(tmp_path / "pool")
    run(str(tmp_path / "a.txt"), pool, ray_session)
    with tarfile.open(pool.locate("shards/00000.tar")) as tar:
        assert tar.getnames() == ["000000.jpg", "000000.json", "000001.jpg", "000001.json"]


def test_a_shard_ends_at_its_deadline(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    rows = serve_rows(server, 3)
    rows += [{"url": server.add(f"/hang{i}", Route(hang=True)), "caption": "", "n": i} for i in range(40)]
    pool = Pool(tmp_path / "pool")
    start = time.monotonic()
    report = run(
        write_list(tmp_path / "a.jsonl", rows),
        pool,
        ray_session,
        shard_size=100,
        shard_seconds=1.5,
        request_seconds=60.0,
    )
    assert time.monotonic() - start < 20
    assert report.messages == {"shard deadline exceeded": 40, "success": 3}


def test_an_opt_out_takes_back_what_came_before(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    rows = serve_rows(server, 6)
    rows[5]["url"] = server.add("/out.jpg", Route(picture(5), headers={"X-Robots-Tag": "noai"}, delay=0.3))
    other = server.add("/other.jpg", picture(7), host="127.0.0.8")
    pool = Pool(tmp_path / "pool")
    report = run(write_list(tmp_path / "a.jsonl", [*rows, {"url": other, "caption": "x", "n": 6}]), pool, ray_session)
    assert report.messages == {"Use of image disallowed by X-Robots-Tag directive": 6, "success": 1}


def test_a_shard_that_cannot_be_written_is_named(server: WebServer, tmp_path: Path, ray_session: Executor) -> None:
    pool = Pool(tmp_path / "pool")
    urls = write_list(tmp_path / "a.jsonl", serve_rows(server, 12))
    (tmp_path / "pool" / "shards" / "00001.tar").mkdir(parents=True)
    with pytest.raises(ShardError, match=r"1 of 2 shards failed, first 00001: .*run the command again"):
        run(urls, pool, ray_session)
    assert pool.shards() == [0]
    (tmp_path / "pool" / "shards" / "00001.tar").rmdir()
    assert run(urls, pool, ray_session).num_rows == 2


_DRIVER = """
import sys
from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.download import download
from curate.store import Pool
from schemas.progress import SilentProgress
with Executor(num_workers=2) as executor:
    config = DownloadConfig(allow_private=True, image_size=24, shard_size=5, connections_per_host=2)
    download(sys.argv[1], Pool(sys.argv[2]), config, executor=executor, progress=SilentProgress())
"""


def test_kill_of_driver_and_worker_leaves_the_same_bytes(
    server: WebServer, tmp_path: Path, ray_session: Executor
) -> None:
    rows = []
    for i in range(120):
        url = server.add(f"/{i}.jpg", Route(picture(i), delay=0.1))
        rows.append({"url": url if i % 7 else server.url(f"/none{i}"), "caption": f"{i}", "n": i})
    urls = write_list(tmp_path / "a.jsonl", rows)
    undisturbed = Pool(tmp_path / "undisturbed")
    run(urls, undisturbed, ray_session, shard_size=5)
    killed = Pool(tmp_path / "killed")
    command = [sys.executable, "-c", _DRIVER, urls, killed.root]
    # `RAY_ADDRESS` empty: a Ray of its own, whose processes the kill takes along.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    interrupted = 0
    log = tmp_path / "log"
    for victim in ("driver", "worker"):
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=output, stderr=output)
        count = len(killed.shards())
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            workers = [child.pid for child in descendants(process.pid) if is_at_work(child)]
            if len(killed.shards()) >= count + 2 and workers:
                os.kill(process.pid if victim == "driver" else workers[0], signal.SIGKILL)
                interrupted += 1
                break
            time.sleep(0.05)
        process.wait(120)
        assert (process.returncode == 0) == (victim == "worker"), log.read_text()[-3000:]
    assert interrupted == 2
    run(urls, killed, ray_session, shard_size=5)
    assert files(killed) == files(undisturbed)
    assert not list((tmp_path / "killed").rglob("*.staging"))


def is_at_work(process: Process) -> bool:
    """Tell whether a process is a Ray worker with a task."""
    return (
        process.command.startswith("ray::")
        and not process.command.startswith("ray::IDLE")
        and "Agent" not in process.command
    )


@pytest.mark.parametrize(
    ("num_shards", "num_workers", "sizes"),
    [
        (1, 2, [1]),
        (2, 2, [1, 1]),
        (3, 2, [1, 2]),
        (4, 2, [2, 2]),
        (16, 2, [8, 8]),
        (17, 2, [4, 4, 4, 5]),
        (40, 2, [6, 7, 7, 6, 7, 7]),
    ],
)
def test_workers_get_equal_shares(num_shards: int, num_workers: int, sizes: list[int]) -> None:
    groups = group_shards(range(5, 5 + num_shards), num_workers, config())
    assert [len(group) for group in groups] == sizes
    assert [shard for group in groups for shard in group] == list(range(5, 5 + num_shards))
    assert all(len(group) == 1 for group in group_shards(range(num_shards), num_workers, config(fetcher="img2dataset")))
