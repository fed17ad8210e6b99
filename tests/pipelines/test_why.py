"""Explaining one sample: outcome, values, copies and captions, as the files say."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from curate.select import Selection, Top, select
from curate.store import Pool
from pipelines.explain import tabulate_explanation
from pipelines.why import MAX_COPIES, find_selections, why
from schemas.errors import InputError
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool
from tests.pipelines.text import as_text
from tests.pool import FAILED_ROWS

GROUPS = pa.schema([("near_dedup_group", pa.string()), ("is_near_duplicate", pa.bool_())])
RECAPTION = pa.schema([
    ("recaption", pa.string()),
    ("recaption_model", pa.string()),
    ("recaption_prompt_digest", pa.string()),
    ("recaption_embedding", pa.list_(pa.float32())),
])


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = annotated_pool(tmp_path / "pool")
    for shard in pool.shards():
        groups = {
            "near_dedup_group": ["g" if row in {2, 4} else None for row in range(12)],
            "is_near_duplicate": [None] * 12,
        }
        annotate_shard(pool, shard, "near", groups, GROUPS, operator="near_dedup")
        texts = {
            "recaption": [f"made {row}" for row in range(12)],
            "recaption_model": ["tiny"] * 12,
            "recaption_prompt_digest": ["abc"] * 12,
            "recaption_embedding": [[0.0] * 32] * 12,
        }
        annotate_shard(pool, shard, "made", texts, RECAPTION, operator="recaption")
    return pool


def uid_at(pool: Pool, shard: int, row: int) -> str:
    return str(pool.read_table(pool.shard_parquet(shard), ["uid"])["uid"][row])


def test_a_dropped_sample_names_its_rules_with_their_values(pool: Pool) -> None:
    rules = {"score": "b32.clip_score > 0.05", "words": "caption_num_words > 9", "lang": "caption_language = 'en'"}
    report = select(pool, Selection(name="mine", rules=rules, weight="2"))
    (found,) = why(pool, uid_at(pool, 0, 4))
    (verdict,) = found.selections
    assert (verdict.folder, verdict.kept, verdict.weight) == (report.folder, False, None)
    outcomes = {row.rule: (row.passed, row.is_first) for row in verdict.rules}
    assert outcomes == {
        "downloaded": (True, False),
        "score": (False, True),
        "words": (False, False),
        "lang": (True, False),
    }
    values = {row.rule: dict(row.values) for row in verdict.rules}
    assert values["score"] == {"b32.clip_score": pytest.approx(0.04)}
    assert values["words"] == {"caption_num_words": 4}
    assert verdict.changed_labels == ()
    shown = as_text(tabulate_explanation(found))
    assert "FAILED, dropped it" in shown
    assert "b32.clip_score = 0.04" in shown


def test_a_kept_sample_has_its_weight_and_the_cut_it_survived(pool: Pool) -> None:
    select(pool, Selection(name="best", top=Top(by="b32.clip_score", fraction=0.3), weight="1 + row"))
    kept, cut, failed = (
        why(pool, uid_at(pool, *place))[0].selections[0] for place in ((2, 4), (0, 4), (0, FAILED_ROWS[0]))
    )
    assert kept.weight == 5
    assert [(row.rule, row.passed) for row in kept.rules] == [("downloaded", True), ("top", True)]
    assert kept.rules[1].values == {"b32.clip_score": pytest.approx(2.04)}
    assert [(row.rule, row.is_first) for row in cut.rules] == [("downloaded", False), ("top", True)]
    # What was never fetched was in no running for the best share.
    assert [(row.rule, row.is_first) for row in failed.rules] == [("downloaded", True)]
    assert "status" in failed.rules[0].values


def test_copies_and_captions(pool: Pool) -> None:
    (found,) = why(pool, uid_at(pool, 0, 2))
    (copies,) = found.copies
    assert (copies.column, copies.group, copies.num_others) == ("near.near_dedup_group", "g", 5)
    assert {row["uid"] for row in copies.others} == {
        uid_at(pool, shard, row) for shard in range(3) for row in (2, 4)
    } - {uid_at(pool, 0, 2)}
    assert len(copies.others) <= MAX_COPIES
    made = {caption.column: caption for caption in found.captions}
    assert made["made.recaption"].text == "made 2"
    assert made["made.recaption"].provenance == {"model": "tiny", "prompt_digest": "abc"}
    assert made["alt_text"].provenance == {}
    assert found.labels["made"]["recaption_embedding"] == "32 numbers"
    json.dumps(found.to_dict())
    assert "near.near_dedup_group = g" in as_text(tabulate_explanation(found))


def test_a_url_means_all_its_samples(pool: Pool) -> None:
    url = str(pool.read_table(pool.shard_parquet(1), ["url"])["url"][3])
    assert [found.sample["url"] for found in why(pool, url)] == [url]


def test_a_selection_of_other_annotations_says_so(pool: Pool) -> None:
    select(pool, Selection(name="old", rules={"score": "b32.clip_score > 0.05"}))
    for shard in pool.shards():
        annotate_shard(pool, shard, "new", {"clip_score": [1.0] * 12}, SCORE)
    pool.set_labels({"b32": pool.labels()["new"]})
    (found,) = why(pool, uid_at(pool, 0, 4))
    assert found.selections[0].changed_labels == ("b32",)
    assert not found.selections[0].rules[1].passed  # what happened, not what would happen now
    assert "annotated anew since: b32" in as_text(tabulate_explanation(found))


def test_what_is_not_there_is_named(pool: Pool) -> None:
    select(pool, Selection(name="mine"))
    with pytest.raises(InputError, match=r"no sample with the url 'http://nowhere/x'; `winnow sql"):
        why(pool, "http://nowhere/x")
    with pytest.raises(InputError, match="no sample with the uid"):
        why(pool, "0" * 32)
    with pytest.raises(InputError, match=r"no selection 'zzz'; it has: mine-"):
        why(pool, uid_at(pool, 0, 0), selection="zzz")
    with pytest.raises(InputError, match="no sample"):
        why(pool, "' OR true --")


def test_selections_by_name_or_folder(pool: Pool) -> None:
    one = select(pool, Selection(name="a")).folder
    two = select(pool, Selection(name="a", rules={"x": "row > 1"})).folder
    other = select(pool, Selection(name="a-b")).folder
    assert sorted(find_selections(pool)) == sorted([one, two, other])
    assert sorted(find_selections(pool, "a")) == sorted([one, two])
    assert find_selections(pool, two) == [two]
    assert find_selections(pool, f"{pool.root}/{other}/") == [other]
