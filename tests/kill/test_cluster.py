"""Jobs on a Ray cluster of several nodes, one of which is killed in the middle: the files are those of a run on one machine in peace."""

# ruff: noqa: E402  (what may be missing is asked for first)

import subprocess
import time
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem

s3fs = pytest.importorskip("s3fs", reason="part of the extra dev")
pytest.importorskip("moto", reason="part of the extra dev")

from tests.kill.cluster import Cluster
from tests.kill.digests import digest_tree
from tests.kill.processes import run
from tests.object_store import serve_bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RECIPE = """
name: cluster
download: {shard_size: 30, image_size: 128, allow_private: true}
annotate: [image_stats, caption_stats, perceptual_hash, exact_dedup]
select:
  name: kept
  rules:
    words: caption_stats.caption_num_words >= 3
    unique: NOT exact_dedup.is_image_duplicate
build: {shard_size: 100}
"""


def arguments(web: Path, pool: str, out: Path, recipe: Path) -> list[str]:
    return ["run", str(recipe), "--input", str(web), "--pool", pool, "--out", str(out)]


def wait_for(job: "subprocess.Popen[bytes]", files: AbstractFileSystem, folder: str, number: int, log: Path) -> None:
    """Wait until a running job has committed so many Parquets below a folder."""
    deadline = time.monotonic() + 300
    while sum(path.endswith(".parquet") for path in files.find(folder, refresh=True)) < number:
        assert job.poll() is None, f"the job ended before the kill:\n{log.read_text(errors='replace')[-4000:]}"
        assert time.monotonic() < deadline, f"nothing was committed:\n{log.read_text(errors='replace')[-4000:]}"
        time.sleep(0.05)


def test_a_job_outlives_nodes(web: Path, tmp_path: Path) -> None:
    recipe, log = tmp_path / "cluster.yaml", tmp_path / "log.txt"
    recipe.write_text(RECIPE)
    quiet, stormy = tmp_path / "quiet", tmp_path / "stormy"
    run(arguments(web, str(quiet / "pool"), quiet / "out", recipe), log)
    with serve_bucket() as bucket, Cluster(num_workers=2, environment=bucket.environment) as cluster:
        endpoint = bucket.environment["AWS_ENDPOINT_URL"]
        files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint, use_listings_cache=False)
        pool = f"{bucket.url}/pool"
        command = [*arguments(web, pool, stormy / "out", recipe), "--address", "auto"]
        job = cluster.submit(command, log)
        wait_for(job, files, f"{pool}/shards", 3, log)
        cluster.kill_node(1)
        # A machine that comes back, or another one, takes part at once.
        cluster.add_node()
        wait_for(job, files, f"{pool}/annotations", 5, log)
        cluster.kill_node(2)
        assert job.wait(600) == 0, log.read_text(errors="replace")[-6000:]
        again = cluster.submit(command, log)
        assert again.wait(200) == 0
        files.get(pool, str(stormy / "pool"), recursive=True)
    assert "up to date" in log.read_text(errors="replace")
    for name in ("pool", "out/datasets"):
        assert digest_tree(stormy / name, ignore=("logs",)) == digest_tree(quiet / name, ignore=("logs",)), name
