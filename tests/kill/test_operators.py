"""Kill -9 amid operators of every kind, then resume on one worker or two: the columns are those of a run in peace."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from curate.store import Pool
from tests.hostile import hostile_rows, pictures
from tests.kill.digests import digest_tree
from tests.kill.processes import kill_and_finish, run
from tests.model import make_checkpoint
from tests.pool import make_rows, write_shard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NUM_SHARDS, SHARD_SIZE = 4, 120
MAX_TRIES = 4
ROW_WISE = (
    *("image_stats", "image_quality", "face_boxes", "perceptual_hash", "colour_layout", "language", "sub_captions"),
    *("caption_stats", "caption_complexity", "caption_pii", "caption_safety", "negatives"),
)
POOL_WIDE = ("exact_dedup", "near_dedup", "caption_dedup", "caption_template", "caption_tags", "concept_balance")
OVER_EMBEDDINGS = ("cluster", "semantic_dedup")


def make_pool(root: Path) -> None:
    """Write shards of drawn pictures, and one of the worst rows."""
    pool = Pool(root / "pool")
    for shard in range(NUM_SHARDS):
        write_shard(pool, shard, make_rows(SHARD_SIZE, seed=shard))
    # A megabyte in a caption would only make the test slow: what it does is shown in `test_adversarial`. A fetch stores no file whose
    # header it cannot read.
    unreadable = {pictures()["header only"], pictures()["no picture"]}
    rows = [
        replace(row, caption=row.caption and row.caption[:2000])
        for row in hostile_rows()
        if row.image not in unreadable
    ]
    write_shard(pool, NUM_SHARDS, rows)


def commands(root: Path, files: Path, num_workers: int) -> list[list[str]]:
    """Return the runs: operators over pictures and captions, a model, and pool-wide ones; then those that read the model's columns."""
    start = ["annotate", "--pool", str(root / "pool"), "--num-workers", str(num_workers)]
    given = [f"metadata_match:metadata={files / 'metadata.txt'}", f"clip_score:model={files / 'model'}"]
    return [[*start, *ROW_WISE, *given, *POOL_WIDE], [*start, *OVER_EMBEDDINGS]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what the operators take as parameters."""
    folder = tmp_path_factory.mktemp("files")
    make_checkpoint(folder / "model")
    (folder / "metadata.txt").write_text("red\nblue\ncircle\na\ncat\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def quiet(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[float]]:
    """Return the digests of every annotation made in peace on one worker, and the seconds of each run."""
    root = tmp_path_factory.mktemp("quiet")
    make_pool(root)
    seconds = [run(command, root / "log.txt", timeout=900) for command in commands(root, files, 1)]
    return digest_tree(root / "pool" / "annotations"), seconds


@pytest.mark.parametrize("num_workers", [1, 2])
def test_columns_survive_kills(
    num_workers: int, files: Path, quiet: tuple[dict[str, str], list[float]], tmp_path: Path
) -> None:
    wanted, seconds = quiet
    source = random.Random(num_workers)
    make_pool(tmp_path)
    log = tmp_path / "log.txt"
    struck = []
    for command, usual in zip(commands(tmp_path, files, num_workers), seconds, strict=True):
        delay = source.uniform(0.5, 0.9) * usual
        for _ in range(MAX_TRIES):
            struck.append(kill_and_finish(command, source.choice(["driver", "worker"]), delay, log, source))
            if "finished" not in struck[-1]:
                break
            delay /= 2
        run(command, log, timeout=900)
    assert digest_tree(tmp_path / "pool" / "annotations") == wanted, f"on {num_workers} workers after {struck}"
    assert any("finished" not in kill for kill in struck), struck
