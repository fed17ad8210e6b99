"""Decisions: on the disk at once, a column soon, never lost by a kill or to another browser."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curate.catalog import Catalog
from curate.select import Selection, select
from curate.store import LabelTarget, Pool
from pipelines.browse.decisions import DECISIONS_FILE, Decisions
from pipelines.why import why
from schemas.annotation import AnnotationHeader
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return annotated_pool(tmp_path / "pool")


def uids_of(pool: Pool) -> list[str]:
    return [
        uid for shard in pool.shards() for uid in pool.read_table(pool.shard_parquet(shard), ["uid"])["uid"].to_pylist()
    ]


def test_a_decision_survives_whoever_took_it(pool: Pool) -> None:
    uids = uids_of(pool)
    Decisions(pool).decide(uids[:2], "keep")
    Decisions(pool).decide([uids[1]], "flag")
    Decisions(pool).decide([uids[0]], None)
    assert Decisions(pool).all() == {uids[1]: "flag"}


def test_two_browsers_do_not_undo_each_other(pool: Pool) -> None:
    first, second = Decisions(pool), Decisions(pool)
    uids = uids_of(pool)
    first.decide([uids[0]], "keep")
    second.decide([uids[1]], "drop")
    assert first.decide([uids[2]], "flag") == {uids[0]: "keep", uids[1]: "drop", uids[2]: "flag"}


def test_published_decisions_are_a_column_of_every_row(pool: Pool) -> None:
    decisions = Decisions(pool)
    uids = uids_of(pool)
    assert decisions.is_published()
    decisions.decide([uids[3], uids[30]], "drop")
    assert not decisions.is_published()
    assert decisions.publish()
    assert decisions.is_published()
    assert not decisions.publish()
    with Catalog(pool) as catalog:
        rows = catalog.sql("SELECT uid, manual.decision FROM pool ORDER BY shard, row").fetchall()
    assert rows == [(uid, "drop" if uid in {uids[3], uids[30]} else None) for uid in uids]
    target = pool.labels()["manual"]
    for shard in pool.shards():
        header = pool.shard_header(shard)
        found = pool.annotation_header("manual", target.fingerprint, shard)
        assert isinstance(found, AnnotationHeader)
        assert (found.uid_digest, found.shard_digest) == (header.uid_digest, header.shard_digest)


def test_select_and_why_see_them(pool: Pool) -> None:
    decisions = Decisions(pool)
    uids = uids_of(pool)
    decisions.decide([uids[0], uids[2]], "keep")
    decisions.publish()
    by_hand = Selection(name="mine", rules={"by hand": "manual.decision = 'keep'"})
    first = select(pool, by_hand)
    assert first.num_kept == 2
    (found,) = why(pool, uids[2])
    assert found.labels["manual"] == {"decision": "keep"}
    # Other decisions make another selection: its identity is their content.
    decisions.decide([uids[2]], None)
    decisions.publish()
    second = select(pool, by_hand)
    assert (second.num_kept, second.was_current) == (1, False)
    decisions.decide([uids[2]], "keep")
    decisions.publish()
    assert select(pool, by_hand).was_current


def test_annotations_of_earlier_decisions_go_unless_a_selection_was_made_with_them(pool: Pool) -> None:
    decisions = Decisions(pool)
    uids = uids_of(pool)
    made = []
    for number in range(5):
        decisions.decide([uids[number]], "keep")
        decisions.publish()
        made.append(pool.labels()["manual"].fingerprint[:12])
        if number == 1:
            select(pool, Selection(name="mine", rules={"by hand": "manual.decision = 'keep'"}))
    # The one of the selection, the newest, and the one before, which somebody may be reading.
    assert set(pool.list_names("annotations/manual")) == {made[1], made[3], made[4]}


def test_a_killed_browser_loses_nothing(pool: Pool) -> None:
    """Killed after the answer and before the annotation: the file is whole, and the next browser publishes it."""
    uid = uids_of(pool)[0]
    script = (
        "import sys, os, signal\nfrom curate.store import Pool\nfrom pipelines.browse.decisions import Decisions\n"
        "Decisions(Pool(sys.argv[1])).decide([sys.argv[2]], 'flag')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, pool.root, uid], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pq.read_table(Path(pool.root) / DECISIONS_FILE).to_pylist() == [{"uid": uid, "decision": "flag"}]
    decisions = Decisions(pool)
    assert not decisions.is_published()
    decisions.publish()
    with Catalog(pool) as catalog:
        assert catalog.sql("SELECT uid FROM pool WHERE manual.decision = 'flag'").fetchall() == [(uid,)]


def test_a_failed_write_leaves_the_old_decisions(pool: Pool) -> None:
    uids = uids_of(pool)
    decisions = Decisions(pool)
    decisions.decide([uids[0]], "keep")
    folder = Path(pool.root) / "manual"
    staged = folder / f".decisions.parquet.host.{os.getpid()}.abc.staging"
    staged.write_bytes(b"half")
    assert Decisions(pool).all() == {uids[0]: "keep"}


def test_before_the_first_decision_the_column_is_null(pool: Pool) -> None:
    Decisions(pool).publish()
    with Catalog(pool) as catalog:
        assert catalog.sql("SELECT count(*) FROM pool WHERE manual.decision IS NULL").fetchall() == [(36,)]


def test_a_label_that_is_taken_is_left_alone(pool: Pool) -> None:
    pool.set_labels({"manual": LabelTarget(operator="caption_stats", fingerprint="a" * 64)})
    with pytest.raises(InputError, match=r"belongs to the operator caption_stats.*another label"):
        Decisions(pool)


def test_other_words_are_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match="must be one of keep, drop, flag"):
        Decisions(pool).decide(["x"], "burn")
    assert not pool.exists(DECISIONS_FILE)
    assert json.loads(pool.read_bytes("annotations/labels.json")).keys() == {"b32", "siglip", "words", "recap"}
