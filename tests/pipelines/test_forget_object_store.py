"""`winnow forget` in object storage, behind a real S3-compatible server: what it leaves is what it leaves on a disk, after a kill too."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

pytest.importorskip("s3fs", reason="part of the extra dev")
pytest.importorskip("moto", reason="part of the extra dev")

from curate.executor import Executor
from curate.forget import ForgetRequest, ForgetTargets
from curate.models.generation import CACHE_FOLDER
from curate.store import Pool, Store
from pipelines.forget import forget
from tests.kill.digests import digest_tree
from tests.object_store import ObjectStore, serve_bucket
from tests.pool import draw, jpeg
from tests.taken_down import ROW, SHARD, UID, URL, find_traces, make_scene
from tests.webserver import WebServer
from train.index import Dataset

REQUEST = ForgetRequest(urls=(URL,))
EXPORTS = ("subset.npy", "open-clip", "parquet")
# Not in the bucket, or of another name each time.
LOCAL = ("columns", "cache")
VARYING = (*LOCAL, "receipts", "pending")


@dataclass(frozen=True)
class Original:
    """A scene on a disk as it was made, what a takedown there leaves of it, and its receipt."""

    root: Path  # where it was made, and is not any more
    kept: Path
    digests: dict[str, str]
    files: set[tuple[str, str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class Remote:
    """The scene in a bucket; what only a machine keeps is in the folder `local`."""

    url: str
    local: Path

    @property
    def pool(self) -> Pool:
        return Pool(f"{self.url}/pool")

    @property
    def targets(self) -> ForgetTargets:
        caches = (str(self.local / "answers"), str(self.local / "columns"))
        exports = tuple(f"{self.url}/{name}" for name in EXPORTS)
        return ForgetTargets(datasets=(f"{self.url}/datasets",), caches=caches, exports=exports)

    def datasets(self) -> list[str]:
        return [f"{self.url}/datasets/{name}" for name in Store(f"{self.url}/datasets").list_names("")]


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStore]:
    with serve_bucket() as store:
        yield store


@pytest.fixture(autouse=True)
def environment(bucket: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the server, and no columns of other tests' trainers."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


@pytest.fixture(scope="module")
def original(ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("forget_remote")
    scene = make_scene(folder / "work", ray_session)
    shutil.copytree(scene.root, folder / "kept")
    (folder / "scratch").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "scratch"))
        targets = ForgetTargets(datasets=(str(scene.root / "datasets"),), exports=tuple(scene.exports))
        report = forget(scene.pool, REQUEST, targets)
    files = named(report.files, str(scene.root), scene.pool.root)
    return Original(scene.root, folder / "kept", digest_tree(scene.root, ignore=VARYING), files)


@pytest.fixture
def remote(original: Original, bucket: ObjectStore, tmp_path: Path) -> Remote:
    found = Remote(f"{bucket.url}/scene", tmp_path / "local")
    upload(original, found)
    for dataset in found.datasets():
        Dataset.open(dataset, cache=str(found.local / "columns"))
    return found


def upload(original: Original, remote: Remote) -> None:
    """Put the scene into the bucket, in the place of what is there; a view says where its pool lies now."""
    store = Store(remote.url)
    if store.exists(""):
        store.filesystem.rm(store.root, recursive=True)
    for path in original.kept.rglob("*"):
        name = path.relative_to(original.kept)
        if path.is_file() and not set(name.parts) & set(LOCAL):
            data = path.read_bytes()
            moved = data.replace(str(original.root).encode(), remote.url.encode()) if path.suffix == ".json" else data
            store.commit_bytes(name.as_posix(), moved)
    shutil.rmtree(remote.local / "answers", ignore_errors=True)
    shutil.copytree(original.kept / "pool" / CACHE_FOLDER, remote.local / "answers")


def download(remote: Remote, original: Original, folder: Path) -> Path:
    """Fetch everything that the bucket holds, as it would lie on the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    filesystem = Store(remote.url).filesystem
    for path in filesystem.find(remote.url):
        target = folder / path.partition("/scene/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        data = filesystem.cat_file(path)
        is_moved = target.suffix == ".json" and "forgotten" not in target.parts
        target.write_bytes(data.replace(remote.url.encode(), str(original.root).encode()) if is_moved else data)
    return folder


def named(changes: Any, root: str, pool: str) -> set[tuple[str, str, str]]:
    """Return the changes of a receipt whose files say nothing of their place, by where they lie in the scene."""
    found = set()
    for change in changes:
        entry = change if isinstance(change, dict) else vars(change)
        path = entry["path"] if entry["path"].startswith((root, "/")) else f"{pool}/{entry['path']}"
        if path.startswith(f"{root}/") and path.endswith((".parquet", ".tar", ".npy")):
            found.add((path.removeprefix(f"{root}/"), entry["sha256_before"], entry["sha256_after"]))
    return found


def test_what_is_left_is_what_is_left_on_a_disk(remote: Remote, original: Original, tmp_path: Path) -> None:
    before = download(remote, original, tmp_path / "before")
    assert {path.split("/")[0] for path in find_traces(before)} == {"pool", "datasets", "open-clip", "parquet"}
    assert {path.split("/")[0] for path in find_traces(remote.local)} == {"answers", "columns"}
    untouched = digest_tree(before)
    planned = forget(remote.pool, REQUEST, remote.targets, is_dry=True)
    assert digest_tree(download(remote, original, tmp_path / "planned")) == untouched
    report = forget(remote.pool, REQUEST, remote.targets)
    after = download(remote, original, tmp_path / "after")
    assert find_traces(after) == {}
    assert find_traces(remote.local) == {}
    assert digest_tree(after, ignore=VARYING) == original.digests
    assert [(row.uid, row.shard, row.row) for row in report.rows] == [(UID, SHARD, ROW)]
    assert report.not_done == []
    assert named(report.files, remote.url, remote.pool.root) == original.files
    assert {change.path for change in planned.files} <= {change.path for change in report.files}
    assert json.loads(remote.pool.read_bytes(report.receipt)) == json.loads(json.dumps(report.to_dict()))
    assert remote.pool.list_names("forgotten/pending") == []
    for dataset in remote.datasets():
        opened = Dataset.open(dataset, cache=str(tmp_path / "again"))
        opened.verify()
        assert UID not in opened.table.uids(range(opened.num_samples))  # type: ignore[arg-type]
    again = forget(remote.pool, REQUEST, remote.targets)
    assert (again.rows, again.files) == ([], [])


def test_a_view_on_a_disk_follows_tars_in_a_bucket(remote: Remote, original: Original, tmp_path: Path) -> None:
    view = next(path for path in remote.datasets() if '"kind": "view"' in Store(path).read_bytes("index.json").decode())
    folder = tmp_path / "datasets" / "deep" / "view"
    folder.mkdir(parents=True)
    for name in Store(view).list_names(""):
        (folder / name).write_bytes(Store(view).read_bytes(name))
    targets = ForgetTargets(datasets=(str(tmp_path / "datasets"),), caches=remote.targets.caches)
    forget(remote.pool, REQUEST, targets)
    opened = Dataset.open(str(folder), cache=str(tmp_path / "again"))
    opened.verify()
    assert f"{remote.url}/pool/shards/{SHARD:05d}.tar" in (folder / "index.json").read_text()
    # Below a folder of folders, as on a disk.
    Store(f"{remote.url}/more").commit_bytes("deep/view/index.json", Store(view).read_bytes("index.json"))
    for name in Store(view).list_names("", ".parquet"):
        Store(f"{remote.url}/more").commit_bytes(f"deep/view/{name}", Store(view).read_bytes(name))
    report = forget(remote.pool, REQUEST, ForgetTargets(datasets=(f"{remote.url}/more",)))
    assert f"{remote.url}/more/deep/view/index.json" in {change.path for change in report.files}
    assert (
        f"{remote.url}/pool/shards/{SHARD:05d}.tar"
        in Store(f"{remote.url}/more").read_bytes("deep/view/index.json").decode()
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_any_instant_is_finished_by_the_next_run(
    remote: Remote, original: Original, bucket: ObjectStore, tmp_path: Path
) -> None:
    instants = []
    for instant in range(1, 1000, 11):
        upload(original, remote)
        if not _killed(remote, bucket, instant):
            break
        instants.append(instant)
        # The next takedown, of something else, finishes it.
        is_other = len(instants) % 2 == 0
        if is_other:
            forget(remote.pool, ForgetRequest(uids=("0" * 32,)), ForgetTargets())
        else:
            forget(remote.pool, REQUEST, remote.targets)
        after = download(remote, original, tmp_path / "after")
        assert find_traces(after) == {}, instant
        assert find_traces(remote.local / "answers") == {}, instant
        assert digest_tree(after, ignore=(*VARYING, "list.json")) == {
            path: digest for path, digest in original.digests.items() if not path.endswith("forgotten/list.json")
        }, instant
        receipts = [json.loads(path.read_bytes()) for path in (after / "pool/forgotten/receipts").iterdir()]
        (found,) = [receipt for receipt in receipts if receipt["rows"]]
        assert named(found["files"], remote.url, remote.pool.root) == original.files, instant
        assert remote.pool.list_names("forgotten/pending") == [], instant
    assert len(instants) > 5


def _killed(remote: Remote, bucket: ObjectStore, instant: int) -> bool:
    """Run a takedown in a process that kills itself before the so-many-th change becomes visible; False where it ended before."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_forget_and_die, args=(remote, bucket.environment, instant, tempfile.tempdir))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _forget_and_die(remote: Remote, environment: dict[str, str], instant: int, scratch: str) -> None:
    os.environ.update(environment)
    tempfile.tempdir = scratch
    commit, remove, count = Store.commit, Store.remove, 0

    def die() -> None:
        nonlocal count
        count += 1
        if count == instant:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def dying_commit(store: Store, path: str) -> Iterator[BinaryIO]:
        with commit(store, path) as file:
            yield file
            die()

    def dying_remove(store: Store, path: str) -> None:
        die()
        remove(store, path)

    Store.commit, Store.remove = dying_commit, dying_remove  # type: ignore[method-assign]
    forget(remote.pool, REQUEST, remote.targets)


def winnow(bucket: ObjectStore, *arguments: str) -> str:
    """Run the command line to its end and return what it printed."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    result = subprocess.run(command, env=bucket.environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_is_never_fetched_into_the_bucket_again(bucket: ObjectStore, tmp_path: Path) -> None:
    pool = Pool(f"{bucket.url}/fetched")
    fetch = ("--pool", pool.root, "--image-size", "48", "--allow-private", "--retries", "0", "--no-respect-robots")
    with WebServer() as server:
        urls = [server.add(f"/{number}.jpg", jpeg(draw((200, 30, 40), "square", seed=number))) for number in range(4)]
        for name, captions in (("first", "one"), ("second", "two")):
            rows = [{"url": url, "caption": f"{captions} {number}"} for number, url in enumerate(urls)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert "4 downloaded" in winnow(bucket, "download", str(tmp_path / "first.jsonl"), *fetch)
        receipt = json.loads(winnow(bucket, "forget", "--pool", pool.root, "--url", urls[2], "--json"))
        assert [(row["shard"], row["row"]) for row in receipt["rows"]] == [(0, 2)]
        assert json.loads(pool.read_bytes(receipt["receipt"])) == receipt
        server.requests.clear()
        assert "3 downloaded" in winnow(bucket, "download", str(tmp_path / "second.jsonl"), *fetch)
        winnow(bucket, "retry", *fetch[:2], "--allow-private", "--no-respect-robots")
        assert sorted(path for path in server.requests if path.endswith(".jpg")) == ["/0.jpg", "/1.jpg", "/3.jpg"]
    statuses = [pool.read_table(pool.shard_parquet(shard))["status"].to_pylist() for shard in pool.shards()]
    assert statuses == [["success", "success", "forgotten", "success"]] * 2
    data = b"".join(pool.filesystem.cat_file(path) for path in pool.filesystem.find(pool.root))
    assert urls[2].partition("://")[2].encode() not in data
