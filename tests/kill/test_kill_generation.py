"""Kill -9 of the driver, of its workers and of the server that answers: nothing is asked twice that had been answered."""

import hashlib
import logging
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from curate.images import ImageError, decode
from curate.models.generation import encode_picture
from curate.store import Pool
from tests.kill.digests import digest_tree
from tests.kill.processes import descendants, kill, reap, run, start
from tests.llm_server import LlmServer, answer_text
from tests.pool import make_pool, make_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

logger = logging.getLogger(__name__)
Span = tuple[float, float]

NUM_SHARDS, SHARD_SIZE = 4, 150
CONCURRENCY = 8
LATENCY = 0.12
SECONDS_BETWEEN = 2.0
KINDS = ("driver", "driver", "server", "workers", "driver", "server", "driver", "driver", "server", "driver")
OPERATOR = str(Path(__file__).parents[1] / "asking.py")
# An answer that has left the server may not be on disk yet when its asker dies.
SLACK_SECONDS = 1.0


def command(pool: Pool, server: LlmServer) -> list[str]:
    settings = f"model=tiny,engine=openai,url={server.url},concurrency={CONCURRENCY},max_new_tokens=60,temperature=0.5"
    return ["annotate", "--pool", pool.root, f"{OPERATOR}:{settings}"]


def kill_once(kind: str, pool: Pool, server: LlmServer, num_asked: int, log: Path) -> list[Span]:
    """Kill a process once so many requests were asked, then the driver; return from when till when things died, as the server's clock tells.

    A driver's workers outlive it by some seconds, and go on asking until Ray ends them.
    """
    deadline = time.monotonic() + 600
    process = start(command(pool, server), log)
    while sum(server.asked().values()) < num_asked:
        assert time.monotonic() < deadline, f"nothing is asked:\n{log.read_text(errors='replace')[-3000:]}"
        # On a machine with too much to do Ray does not always start in its time.
        if process.poll() is not None:
            process = start(command(pool, server), log)
        time.sleep(0.01)
    assert process.poll() is None, f"the run ended before the kill:\n{log.read_text(errors='replace')[-3000:]}"
    spans: list[Span] = []
    alive = descendants(process.pid)
    if kind == "server":
        began = time.monotonic()
        server.kill()
        spans.append((began, time.monotonic()))
        time.sleep(0.5)
        server.start()
    elif kind == "workers":
        began = time.monotonic()
        for worker in (p for p in alive if p.is_worker):
            kill(worker.pid)
        spans.append((began, time.monotonic()))
    if spans:
        # The run goes on without it for a while.
        process_ends = time.monotonic() + SECONDS_BETWEEN
        while time.monotonic() < process_ends and process.poll() is None:
            time.sleep(0.05)
        alive = descendants(process.pid)
    began = time.monotonic()
    kill(process.pid)
    process.wait(30)
    reap(alive)
    return [*spans, (began, time.monotonic())]


def test_no_answer_is_asked_for_twice_and_files_do_not_change(tmp_path: Path) -> None:
    rng = random.Random(int(os.environ.get("WINNOW_KILL_SEED", "0")))
    log = tmp_path / "log.txt"
    kills: list[Span] = []
    quiet, stormy = (make_pool(tmp_path / name, num_shards=NUM_SHARDS, shard_size=SHARD_SIZE) for name in ("q", "s"))
    folders = [tmp_path / name for name in ("quiet-server", "stormy-server")]
    for folder in folders:
        folder.mkdir()
    with LlmServer(folders[0]) as server:
        run(command(quiet, server), log)
        expected = server.asked()
    assert set(expected.values()) == {1}
    with LlmServer(folders[1], latency=LATENCY) as server:
        for number, kind in enumerate(KINDS):
            # Spread over the work that there is: a tenth of it each, give or take.
            target = int(len(expected) * (number + rng.uniform(0.2, 0.9)) / (len(KINDS) + 1)) + 1
            kills += kill_once(kind, stormy, server, target, log)
        run(command(stormy, server), log)
        check_asked_once(server, set(expected), kills)
    assert digest_tree(Path(stormy.root), ignore=("logs", "cache")) == digest_tree(
        Path(quiet.root), ignore=("logs", "cache")
    )
    check_pictures(stormy)


def check_asked_once(server: LlmServer, expected: set[str], kills: Sequence[Span]) -> None:
    """Only what was on its way at a kill may have been asked again."""
    asked = server.asked()
    assert set(asked) == expected
    by_key: dict[str, list[tuple[float, float | None]]] = {}
    for event, key, when in server._events():
        spans = by_key.setdefault(key, [])
        if event == "ask":
            spans.append((when, None))
        else:
            spans[-1] = (spans[-1][0], when)
    for key, spans in by_key.items():
        for came, answered in spans[:-1]:
            # A killed server never answers.
            end = (answered or came + LATENCY) + SLACK_SECONDS
            assert any(came <= last and first <= end for first, last in kills), (
                f"{key} was asked again although it was answered"
            )
    num_again = sum(asked.values()) - len(asked)
    logger.info("asked=%d of them again=%d kills=%d at once=%d", asked.total(), num_again, len(kills), CONCURRENCY)
    assert num_again <= len(kills) * CONCURRENCY, f"{num_again} requests were asked again after {len(kills)} kills"


def check_pictures(pool: Pool) -> None:
    """Compare every answer with what the server says of that row's own picture and text."""
    num_checked = 0
    (folder,) = Path(pool.locate("annotations/asking")).iterdir()
    for shard in range(NUM_SHARDS):
        table = pool.read_table(f"annotations/asking/{folder.name}/{shard:05d}.parquet")
        for row, said in zip(make_rows(SHARD_SIZE, seed=shard), table["asking"].to_pylist(), strict=True):
            if said is None:
                continue
            assert row.image is not None
            try:
                image = encode_picture(decode(row.image), 448)
            except ImageError:
                raise AssertionError("a broken picture has an answer") from None
            picture = hashlib.sha256(image).hexdigest()[:12]
            assert said.split("; ")[1:] == answer_text(f"user: {row.caption}", image, 0).split("; ")[1:]
            assert picture in said
            num_checked += 1
    assert num_checked > NUM_SHARDS * (SHARD_SIZE - 8)
