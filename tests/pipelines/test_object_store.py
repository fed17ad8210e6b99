"""The whole way over a pool in object storage, behind a real S3-compatible server: the command line in processes of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="part of the extra dev")
pytest.importorskip("moto", reason="part of the extra dev")

from curate.store import Store
from tests.object_store import ObjectStore, serve_bucket
from tests.pipelines.web import serve_pairs

NUM_PAIRS = 30
FETCH = ("--image-size", "48", "--shard-size", "10", "--allow-private", "--retries", "0", "--no-respect-robots")


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStore]:
    with serve_bucket() as store:
        yield store


@pytest.fixture(autouse=True)
def environment(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the server too."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)


def winnow(bucket: ObjectStore, *arguments: str) -> str:
    """Run the command line to its end and return what it printed."""
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    result = subprocess.run(command, env=bucket.environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_another_process_sees_a_commit_at_once_and_never_half_a_file(
    bucket: ObjectStore, recwarn: pytest.WarningsRecorder
) -> None:
    store = Store(f"{bucket.url}/store")
    store.commit_bytes("a/first", b"1")
    assert store.list_names("a") == ["first"]
    assert not store.exists("a/second")
    code = f"from curate.store import Store; Store({store.root!r}).commit_bytes('a/second', b'12')"
    subprocess.run([sys.executable, "-c", code], env=bucket.environment, check=True)
    assert store.exists("a/second")
    assert store.num_bytes("a/second") == 2
    for num_parts in (1, 8):  # in one piece, and in parts of an upload
        with pytest.raises(KeyError), store.commit("a/half") as file:
            for _ in range(num_parts):
                file.write(bytes(10 << 20))
            raise KeyError
    with pytest.raises(KeyError), store.commit_path("a/half") as path:
        path.write_bytes(b"x")
        raise KeyError
    assert store.list_names("a") == ["first", "second"]
    store.remove("a/second")
    assert not store.exists("a/second")


@pytest.mark.slow
def test_from_urls_to_a_dataset(bucket: ObjectStore, tmp_path: Path) -> None:
    remote, local = f"{bucket.url}/pool", str(tmp_path / "pool")
    chosen = ("--name", "some", "--rule", "words=caption_num_words >= 3", "--rule", "read=image_width IS NOT NULL")
    with serve_pairs(tmp_path / "list.csv", NUM_PAIRS) as num_images:
        for pool in (remote, local):
            assert f"{num_images} downloaded" in winnow(
                bucket, "download", str(tmp_path / "list.csv"), "--pool", pool, *FETCH
            )
        assert "up to date" in winnow(bucket, "download", str(tmp_path / "list.csv"), "--pool", remote, *FETCH)
    for pool, out in ((remote, f"{bucket.url}/datasets"), (local, str(tmp_path / "datasets"))):
        winnow(bucket, "annotate", "caption_stats", "image_stats", "exact_dedup", "--pool", pool)
        winnow(bucket, "select", "--pool", pool, *chosen)
        winnow(bucket, "build", "--pool", pool, "--selection", "some", "--out", out, "--shard-size", "8")
    # Where a pool lies changes nothing of what is made of it.
    datasets = [Store(f"{bucket.url}/datasets"), Store(tmp_path / "datasets")]
    (folder,) = datasets[1].list_names("")
    assert datasets[0].list_names("") == [folder]
    names = datasets[1].list_names(folder)
    assert datasets[0].list_names(folder) == names
    assert len([name for name in names if name.endswith(".tar")]) > 1
    for name in names:
        assert datasets[0].read_bytes(f"{folder}/{name}") == datasets[1].read_bytes(f"{folder}/{name}"), name

    again = winnow(bucket, "annotate", "caption_stats", "image_stats", "exact_dedup", "--pool", remote)
    assert "up to date" in again
    assert "caption_stats" in winnow(bucket, "status", "--pool", remote)
    for query in (
        "SELECT count(*) AS n, avg(caption_num_words) AS words, count_if(is_image_duplicate) AS copies FROM pool",
        "SELECT rule, num_failing FROM funnel ORDER BY position",
        "SELECT kept, count(*) AS n FROM ledger JOIN pool USING (uid) GROUP BY kept ORDER BY kept",
    ):
        found = [json.loads(winnow(bucket, "sql", query, "--pool", pool, "--json")) for pool in (remote, local)]
        assert found[0] == found[1]
        assert found[0]
