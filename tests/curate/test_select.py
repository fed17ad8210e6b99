"""Selections over small pools: rules, cuts, weights, captions, the files written, and what errors say."""

import hashlib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.select import Limit, PerGroup, Selection, SelectReport, Top, find_selection, select
from curate.store import Pool
from schemas.errors import InputError, MissingColumnsError
from schemas.selection import LEDGER_SCHEMA, SELECTED_SCHEMA
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool, fingerprint_of
from tests.pool import FAILED_ROWS, make_pool

RULES = {
    "score": "b32.clip_score > 0.05",
    "words": "caption_num_words BETWEEN 2 AND 9",
    "lang": "caption_language = 'en'",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return annotated_pool(tmp_path_factory.mktemp("select") / "pool")


def kept(pool: Pool, **settings: Any) -> list[tuple[int, int]]:
    report = select(pool, Selection(**settings))
    table = pool.read_table(f"{report.folder}/selected.parquet")
    return list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))


def ledger(pool: Pool, report: SelectReport) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = pool.read_table(f"{report.folder}/ledger.parquet").to_pylist()
    return rows


def test_rules_keep_what_they_say_and_the_ledger_says_why(pool: Pool) -> None:
    report = select(pool, Selection(name="rules", rules=RULES, weight="1 + row"))
    rows = ledger(pool, report)
    assert len(rows) == report.num_rows == 36
    for position, found in enumerate(rows):
        shard, row = divmod(position, 12)
        failing = [
            name
            for name, fails in (
                ("downloaded", row in FAILED_ROWS),
                ("score", shard + row / 100 <= 0.05),
                ("words", not 2 <= row <= 9),
                ("lang", row % 3 == 0),
            )
            if fails
        ]
        assert found["failing_rules"] == failing
        assert found["first_failing_rule"] == (failing[0] if failing else None)
        assert found["kept"] is (not failing)
        assert found["weight"] == (None if failing else 1 + row)
        assert found["url"].endswith(f"/{row}.jpg") and len(found["uid"]) == 32
        assert (found["status"] == "success") is (row not in FAILED_ROWS)
    assert report.num_kept == sum(row["kept"] for row in rows)


def test_the_files_have_the_schemas_of_the_contract(pool: Pool) -> None:
    report = select(pool, Selection(name="schemas", rules=RULES))
    for name, schema in (("ledger", LEDGER_SCHEMA), ("selected", SELECTED_SCHEMA)):
        assert pq.read_schema(f"{pool.root}/{report.folder}/{name}.parquet").remove_metadata() == schema


def test_the_funnel_adds_up(pool: Pool) -> None:
    report = select(pool, Selection(name="funnel", rules=RULES, limit=Limit(num_samples=5)))
    assert [row.rule for row in report.funnel] == ["downloaded", *RULES, "limit"]
    remaining = report.num_rows
    for row in report.funnel:
        assert row.num_failing >= row.num_first_failing
        remaining -= row.num_first_failing
        assert row.num_remaining == remaining
    assert remaining == report.num_kept == 5
    assert report.funnel[0].num_failing == 3 * len(FAILED_ROWS)


def test_a_null_predicate_fails(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    annotate_shard(pool, 0, "b32", {"clip_score": [None] * 6 + [0.5] * 6}, SCORE)
    assert kept(pool, rules={"score": "clip_score > 0"}) == [(0, row) for row in range(6, 12)]


def test_top_keeps_the_threshold_of_datacomp_and_its_ties(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=2)
    scores = [[0.1, 9, 0.5, 9, 0.5, 0.2, 0.3, None, 0.5, 0.4, 0.6, 0.7], [0.0, 9, 0.1, 9, *[math.nan] * 2, *[0.05] * 6]]
    for shard in (0, 1):
        annotate_shard(pool, shard, "b32", {"clip_score": scores[shard]}, SCORE)
    # Of 20 downloaded rows 17 have a score; int(17 * 0.2) = 3, and the fourth best, 0.5, is there three times.
    found = kept(pool, top=Top(by="clip_score", fraction=0.2))
    assert found == [(0, 2), (0, 4), (0, 8), (0, 10), (0, 11)]
    # The share is of the rows that passed the rules.
    found = kept(pool, rules={"low": "clip_score < 0.5"}, top=Top(by="clip_score", fraction=0.1))
    ranked = sorted((s for shard in scores for s in shard if s is not None and s < 0.5), reverse=True)
    assert len(found) == sum(s >= ranked[int(len(ranked) * 0.1)] for s in ranked)
    assert len(kept(pool, top=Top(by="clip_score", fraction=1.0))) == 17
    # Or of everything that was downloaded, whatever the rules drop.
    found = kept(pool, rules={"even": "row % 2 = 0"}, top=Top(by="clip_score", fraction=0.2, of="pool"))
    assert found == [(0, 2), (0, 4), (0, 8), (0, 10)]
    with pytest.raises(InputError, match="top of is 'rows'; it must be one of rules, pool"):
        Top(by="clip_score", fraction=0.2, of="rows")


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.77])
def test_top_agrees_with_a_plain_reimplementation(tmp_path: Path, fraction: float) -> None:
    rng = random.Random(fraction)
    pool = make_pool(tmp_path / "pool", num_shards=3)
    scores = {(shard, row): round(rng.random(), 1) for shard in range(3) for row in range(12)}
    for shard in range(3):
        annotate_shard(pool, shard, "b32", {"clip_score": [scores[shard, row] for row in range(12)]}, SCORE)
    alive = {place: np.float32(score) for place, score in scores.items() if place[1] not in FAILED_ROWS}
    threshold = sorted(alive.values(), reverse=True)[int(len(alive) * fraction)]
    expected = [place for place, score in alive.items() if score >= threshold]
    assert kept(pool, top=Top(by="clip_score", fraction=fraction)) == expected


def test_a_limit_keeps_the_best_and_breaks_ties_by_uid(pool: Pool) -> None:
    assert kept(pool, limit=Limit(num_samples=3, by="b32.clip_score")) == [(2, 9), (2, 10), (2, 11)]
    assert kept(pool, limit=Limit(num_samples=2, by="b32.clip_score", descending=False)) == [(0, 0), (0, 2)]
    uids = {
        (shard, row): uid
        for shard in pool.shards()
        for row, uid in enumerate(pool.read_table(pool.shard_parquet(shard), ["uid"])["uid"].to_pylist())
        if row not in FAILED_ROWS
    }
    smallest = sorted(sorted(uids, key=lambda place: uids[place])[:4])
    assert kept(pool, limit=Limit(num_samples=4, by="1")) == smallest


def test_a_random_limit_depends_on_the_seed_alone(pool: Pool) -> None:
    draws = {seed: kept(pool, seed=seed, limit=Limit(num_samples=10)) for seed in range(4)}
    assert all(len(draw) == 10 for draw in draws.values())
    assert len({tuple(draw) for draw in draws.values()}) == 4
    assert kept(pool, name="other", seed=2, limit=Limit(num_samples=10)) == draws[2]


def test_a_cap_per_group_keeps_the_best_of_each(pool: Pool) -> None:
    found = kept(pool, per_group=PerGroup(by="caption_language", num_samples=1, order="b32.clip_score"))
    assert found == [(2, 9), (2, 11)]
    found = kept(pool, per_group=PerGroup(by="shard", num_samples=2, order="row", descending=False))
    assert found == [(shard, row) for shard in range(3) for row in (0, 2)]
    found = kept(pool, per_group=PerGroup(by="shard", num_samples=4))
    assert [shard for shard, _ in found] == [0] * 4 + [1] * 4 + [2] * 4


def test_cuts_come_after_rules_in_order(pool: Pool) -> None:
    report = select(
        pool,
        Selection(
            name="order",
            rules={"row": "row > 4"},
            top=Top(by="b32.clip_score", fraction=0.5),
            per_group=PerGroup(by="shard", num_samples=3, order="row"),
            limit=Limit(num_samples=4, by="row"),
        ),
    )
    assert [(row.rule, row.num_remaining) for row in report.funnel] == [
        ("downloaded", 30),
        ("row", 21),
        ("top", 11),
        ("per_group", 6),
        ("limit", 4),
    ]
    reasons = [row["first_failing_rule"] for row in ledger(pool, report)]
    assert (reasons.count("top"), reasons.count("per_group"), reasons.count("limit")) == (10, 5, 2)


def test_a_subquery_over_the_pool_sees_every_row(pool: Pool) -> None:
    found = kept(pool, rules={"mean": "b32.clip_score > (SELECT avg(b32.clip_score) FROM pool)"})
    mean = np.mean([shard + row / 100 for shard in range(3) for row in range(12)])
    assert found == [
        (shard, row) for shard in range(3) for row in range(12) if row not in FAILED_ROWS and shard + row / 100 > mean
    ]


def test_a_current_selection_is_left_alone(pool: Pool) -> None:
    first = select(pool, Selection(name="again", rules=RULES))
    file = Path(pool.root) / first.folder / "ledger.parquet"
    stamp = file.stat().st_mtime_ns
    second = select(pool, Selection(name="again", rules=RULES))
    assert second.was_current and file.stat().st_mtime_ns == stamp
    assert replace(second, was_current=False) == first


def test_the_fingerprint_covers_settings_annotations_and_rows(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool")
    base = Selection(name="fp", rules=RULES)
    seen = {select(pool, base).fingerprint}
    for change in (
        {"weight": "2.0"},
        {"rules": dict(reversed(RULES.items()))},
        {"captions": {"recap.recaption": 1.0}},
        {"seed": 1},
        {"limit": Limit(num_samples=3)},
    ):
        seen.add(select(pool, replace(base, **change)).fingerprint)  # type: ignore[arg-type]
    assert len(seen) == 6
    # The same mixture on another scale is the same selection; an unused label does not matter.
    assert select(pool, replace(base, captions={"alt_text": 7})).fingerprint in seen
    annotate_shard(pool, 0, "siglip", {"clip_score": [0.0] * 12}, SCORE, operator="another")
    assert select(pool, base).was_current
    for shard in pool.shards():
        annotate_shard(pool, shard, "b32", {"clip_score": [0.0] * 12}, SCORE, operator="another")
    assert select(pool, base).fingerprint not in seen


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        pool = annotated_pool(tmp_path / name)
        report = select(pool, Selection(rules=RULES, limit=Limit(num_samples=8)), threads=1 if name == "one" else 4)
        folder = tmp_path / name / report.folder
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())])
        assert sorted(file.name for file in folder.iterdir()) == [
            "ledger.parquet",
            "selected.parquet",
            "selection.json",
        ]
    assert digests[0] == digests[1]


def test_selection_json_tells_the_whole_story(pool: Pool) -> None:
    captions = {"alt_text": 3.0, "recap.rewrite[*]": 1.0}
    report = select(pool, Selection(name="story", rules=RULES, captions=captions))
    content = json.loads(pool.read_bytes(f"{report.folder}/selection.json"))
    assert content["fingerprint"] == report.fingerprint and report.folder.endswith(report.fingerprint[:12])
    assert content["captions"] == [["alt_text", 0.75], ["recap.rewrite[*]", 0.25]]
    assert content["caption_sources"] == {"alt_text": "alt_text", "recap.rewrite": "recap.rewrite"}
    assert set(content["labels"]) == {"b32", "words", "recap"}
    assert content["labels"]["b32"]["fingerprint"] == fingerprint_of("b32")
    assert pool.root not in json.dumps(content)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"typo": "b32.clip_scor > 0"}, r"rule 'typo': .*did you mean b32\.clip_score"),
        ({"label": "b23.clip_score > 0"}, r"rule 'label': .*did you mean b32"),
        (
            {"bare": "clip_score > 0"},
            r"rule 'bare': 'clip_score' is a column of several tables; say b32\.clip_score or",
        ),
        ({"type": "b32.clip_score"}, r"rule 'type' is FLOAT, not a condition"),
        ({"compare": "alt_text > 5"}, r"rule 'compare': Cannot compare values"),
        ({"cast": "alt_text::INTEGER > 5"}, r"rule 'cast': Could not convert string 'a "),
        ({"syntax": "b32.clip_score >"}, r"rule 'syntax': .*syntax error"),
        ({"window": "row_number() OVER (ORDER BY uid) < 5"}, r"rule 'window' uses a window function"),
        ({"random": "random() < 0.5"}, r"rule 'random' uses random"),
        ({"clock": "current_date > '2020-01-01'"}, r"rule 'clock' uses current_date"),
        ({"sum": "avg(b32.clip_score) > 0"}, r"rule 'sum': "),
        ({"two": "true, false"}, r"rule 'two' is TUPLE\(BOOLEAN, BOOLEAN\), not a condition"),
        ({"file": "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0"}, r"rule 'file': "),
    ],
)
def test_a_wrong_rule_is_named_with_its_remedy(pool: Pool, rules: Mapping[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(pool, Selection(name="wrong", rules=rules))
    assert not [name for name in pool.list_names("selections") if name.startswith("wrong")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "../up"}, "names a folder"),
        ({"rules": {"limit": "true"}}, "taken"),
        ({"rules": {"empty": " "}}, "empty"),
        ({"rules": {f"r{i}": "true" for i in range(60)}}, "too many"),
        ({"captions": {}}, "caption probabilities"),
        ({"captions": {"alt_text": -1.0}}, "0 or more"),
        ({"captions": {"alt_text": 0.0}}, "add up to 0"),
    ],
)
def test_impossible_settings_are_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Selection(**settings)


def test_impossible_cuts_are_refused() -> None:
    for make in (
        lambda: Top(by="x", fraction=0),
        lambda: Limit(num_samples=0),
        lambda: PerGroup(by="x", num_samples=0),
    ):
        with pytest.raises(InputError, match="must be"):
            make()


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"recapton": 1.0}, r"no column 'recapton'.*did you mean.*recaption"),
        ({"recap.rewrite": 1.0}, r"caption 'recap.rewrite' is VARCHAR\[\]; write recap.rewrite\[\*\]"),
        ({"alt_text[*]": 1.0}, r"write alt_text$"),
        ({"caption_num_words": 1.0}, r"INTEGER; a caption is text"),
    ],
)
def test_a_wrong_caption_is_named(pool: Pool, captions: Mapping[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(pool, Selection(captions=captions))


@pytest.mark.parametrize(
    "weight", ["-1", "NULL::DOUBLE", "'nan'::DOUBLE", "'inf'::DOUBLE", "CASE WHEN row = 5 THEN -0.5 ELSE 1 END"]
)
def test_a_weight_that_cannot_be_drawn_by_is_refused_with_its_rows(pool: Pool, weight: str) -> None:
    with pytest.raises(InputError, match=r"of 30 are not:\n  [0-9a-f]{32} \(shard 00000, row [05]\): "):
        select(pool, Selection(weight=weight))


def test_weights_of_dropped_rows_do_not_matter(pool: Pool) -> None:
    report = select(pool, Selection(name="log", rules={"row": "row > 0"}, weight="1 + ln(row)"))
    assert report.num_kept == 27
    weights = pool.read_table(f"{report.folder}/selected.parquet")["weight"].to_numpy()
    assert report.effective_samples == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_all_weights_zero_are_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match="weight 0"):
        select(pool, Selection(weight="0"))


def test_an_incomplete_annotation_is_refused_with_the_command(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool")
    pool.remove(pool.annotation_path("recap", fingerprint_of("recap"), 2))
    select(pool, Selection(rules=RULES))
    for settings in ({"rules": {"text": "recap.recaption <> ''"}}, {"captions": {"recap.rewrite[*]": 1.0}}):
        with pytest.raises(
            MissingColumnsError,
            match=r"recap has no current annotation of 1 of 3 shards \(00002\); run\n  winnow annotate",
        ):
            select(pool, Selection(**settings))  # type: ignore[arg-type]


def test_rows_in_the_pool_twice_are_named(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    for suffix in (".parquet", ".tar"):
        Path(pool.root, f"shards/00003{suffix}").write_bytes(Path(pool.root, f"shards/00000{suffix}").read_bytes())
    with pytest.raises(InputError, match=r"uid [0-9a-f]{32} is in shard 00000 row 0 and in shard 00003 row 0"):
        select(pool, Selection())
    with pytest.raises(InputError, match="brought in twice"):
        select(pool, Selection())


def test_nothing_kept_is_a_result(pool: Pool) -> None:
    report = select(pool, Selection(name="none", rules={"never": "false"}))
    assert report.num_kept == 0 and pool.read_table(f"{report.folder}/selected.parquet").num_rows == 0


def test_many_shards_stay_in_pool_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.catalog._RANGE_ROWS", 20)
    monkeypatch.setattr("curate.ledger._ROW_GROUP_ROWS", 30)
    pool = make_pool(tmp_path / "pool", num_shards=9)
    for shard in pool.shards():
        annotate_shard(pool, shard, "b32", {"clip_score": [shard * 12 + row for row in range(12)]}, SCORE)
    report = select(pool, Selection(weight="clip_score + 1", rules={"odd": "clip_score::INTEGER % 2 = 1"}))
    rows = ledger(pool, report)
    assert [row["weight"] for row in rows if row["kept"]] == [
        p + 1 for p in range(108) if p % 2 == 1 and p % 12 not in FAILED_ROWS
    ]
    table: pa.Table = pool.read_table(f"{report.folder}/selected.parquet")
    assert table["uid"].to_pylist() == [row["uid"] for row in rows if row["kept"]]
    assert [s * 12 + r + 1 for s, r in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)] == table[
        "weight"
    ].to_pylist()


def test_find_selection_looks_and_writes_nothing(pool: Pool) -> None:
    selection = Selection(name="looked-for", rules={"score": "b32.clip_score > 0.05"})
    folders = pool.list_names("selections")
    assert find_selection(pool, selection) is None
    assert pool.list_names("selections") == folders
    report = select(pool, selection)
    assert find_selection(pool, selection) == replace(report, was_current=True)
