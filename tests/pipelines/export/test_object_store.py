"""Exports to object storage, behind a real S3-compatible server: written by workers, whole at the end, proven by a second run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("s3fs", reason="part of the extra dev")
pytest.importorskip("moto", reason="part of the extra dev")

from curate.executor import Executor
from curate.store import Store
from tests.object_store import ObjectStore, serve_bucket
from tests.pipelines.export.datasets import make_dataset, make_selections, read_rows


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStore]:
    with serve_bucket() as store:
        yield store


def winnow(bucket: ObjectStore, *arguments: str) -> str:
    """Run an export in a process of its own, which finds the server by its environment."""
    command = [sys.executable, "-m", "pipelines.cli", "export", *arguments]
    result = subprocess.run(command, env=bucket.environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_folders_and_files_are_written_whole(
    bucket: ObjectStore, ray_session: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    pool = make_selections(tmp_path / "pool")
    source = make_dataset(pool, tmp_path, ray_session)
    out = f"{bucket.url}/exports/pairs"
    winnow(bucket, "parquet", source.store.root, "--out", out, "--shard-size", "10")
    store = Store(out)
    manifest = json.loads(store.read_bytes("export.json"))
    assert sorted(store.list_names("")) == sorted([*manifest["files"], "export.json"])
    uids = []
    for name in store.list_names("", ".parquet"):
        with store.open(name) as file:
            uids += pq.read_table(file)["uid"].to_pylist()
    assert uids == [row["uid"] for row in read_rows(source)]
    # Nothing of the work is left beside it.
    assert Store(f"{bucket.url}/exports").list_names("") == ["pairs"]
    assert "up to date" in winnow(bucket, "parquet", source.store.root, "--out", out, "--shard-size", "10")
    winnow(bucket, "datacomp", source.store.root, "--no-weights", "--out", f"{bucket.url}/lists/subset.npy")
    with Store(f"{bucket.url}/lists").open("subset.npy") as file:
        assert len(np.load(file)) == len(uids)
    assert Store(f"{bucket.url}/lists").list_names("") == ["subset.npy"]
