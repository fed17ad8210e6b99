"""Counts and pages agree with SQL, whatever is set; verdicts with the ledger; decisions with the annotation."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.catalog import Catalog
from curate.select import Selection, Top, select
from curate.store import Pool
from pipelines.browse.numbers import Range
from pipelines.browse.query import Query
from pipelines.browse.verdicts import read_verdicts
from pipelines.browse.view import View
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool
from tests.pool import make_rows, write_shard

RULES = {"score": "b32.clip_score > 0.05", "words": "caption_num_words > 3"}
FILTERS = ["", "words.caption_language = 'en'", "length(alt_text) > 20 OR alt_text IS NULL"]
RANGES = ["", "b32.clip_score:1.02..2.07", "samples.width:90.."]
OUTCOMES = ["", "kept", "dropped", "rule:words", "rule:top"]
SORTS = {
    "": "shard, row",
    "b32.clip_score": "b32.clip_score, shard, row",
    "samples.width": "width NULLS LAST, shard, row",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    made = annotated_pool(tmp_path_factory.mktemp("view") / "pool")
    select(made, Selection(name="mine", rules=RULES, top=Top(by="b32.clip_score", fraction=0.7)))
    return made


@pytest.fixture(scope="module")
def view(pool: Pool) -> Iterator[View]:
    opened = View(pool)
    yield opened
    opened.close()


@pytest.mark.parametrize(("condition", "bounds", "outcome"), list(itertools.product(FILTERS, RANGES, OUTCOMES)))
def test_counts_are_those_of_sql(pool: Pool, view: View, condition: str, bounds: str, outcome: str) -> None:
    ranges = (Range.parse(bounds),) if bounds else ()
    base = Query(filter=condition, ranges=ranges, selection="mine")
    with Catalog(pool) as catalog:
        ledger = f"{pool.root}/selections/{view.selections[0]}/ledger.parquet"
        where = f"FROM pool JOIN '{ledger}' AS ledger ON ledger.uid = samples.uid WHERE ({base.to_rule() or 'true'})"
        by_rule = dict(catalog.sql(f"SELECT ledger.first_failing_rule, count(*) {where} GROUP BY ALL").fetchall())
    total, kept = sum(by_rule.values()), by_rule.pop(None, 0)
    expected = {"": total, "kept": kept, "dropped": total - kept}
    expected |= {f"rule:{rule}": count for rule, count in by_rule.items()}
    query = Query(filter=condition, ranges=ranges, selection="mine", outcome=outcome)
    found = view.count(query)
    assert found.found == expected.get(outcome, 0) == len(view.find(query))
    assert {name: count for name, count in found.outcomes.items() if count} == {
        name: count for name, count in expected.items() if name and count
    }
    assert found.decisions == {"none": found.found, "keep": 0, "drop": 0, "flag": 0}


@pytest.mark.parametrize("sort", SORTS)
def test_rows_come_in_order(pool: Pool, view: View, sort: str) -> None:
    with Catalog(pool) as catalog:
        uids = [uid for (uid,) in catalog.sql(f"SELECT uid FROM pool ORDER BY {SORTS[sort]}").fetchall()]
    found = view.find(Query(sort=sort)).tolist()
    assert [row["uid"] for row in view.describe(found, Query(sort=sort))] == uids


def test_text_and_random_orders(view: View) -> None:
    urls = [row["url"] for row in view.describe(view.find(Query(sort="url", descending=True)).tolist(), Query())]
    assert urls == sorted(urls, reverse=True)
    drawn = view.find(Query(sort="random")).tolist()
    assert sorted(drawn) == list(range(36)) != drawn
    assert drawn == view.find(Query(sort="random")).tolist()


def test_a_card_says_what_happened(pool: Pool, view: View) -> None:
    query = Query(selection="mine", sort="b32.clip_score")
    rows = {row["position"]: row for row in view.describe(range(36), query)}
    assert rows[1]["outcome"] == "rule:downloaded"
    assert rows[2]["outcome"] == "rule:score"
    assert rows[35]["outcome"] == "kept"
    assert rows[35]["sort_value"] == pytest.approx(2.11)


def test_explanations_are_those_of_why(pool: Pool, view: View) -> None:
    from pipelines.why import why

    for position in (0, 4, 29):
        uid = view.rows.value("uid", position)
        assert view.locate(uid) == position
        assert view.explain(position) == why(pool, uid)[0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(filter="nothing = 1"), "is not there"),
        (Query(sort="nothing"), "no numeric column 'nothing'"),
        (Query(ranges=(Range.parse("b32.nothing:1.."),)), "no numeric column 'b32.nothing'"),
        (Query(selection="nobody"), "has no selection 'nobody'; it has: mine-"),
        (
            Query(selection="mine", outcome="rule:nothing"),
            "is not kept, dropped or rule:NAME; the rules are downloaded",
        ),
    ],
)
def test_errors_say_what_there_is(view: View, query: Query, message: str) -> None:
    with pytest.raises(InputError, match=message):
        view.find(query)
        view.count(query)


def test_decisions_are_seen_at_once_everywhere(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool")
    view = View(pool)
    assert view.count(Query(filter="manual.decision IS NULL")).found == 36
    view.decide([0, 5, 30], "keep")
    view.decide([5], "drop")
    view.decide([30], None)
    assert view.count(Query()).decisions == {"none": 34, "keep": 1, "drop": 1, "flag": 0}
    assert view.find(Query(decision="any")).tolist() == [0, 5]
    assert view.find(Query(filter="manual.decision = 'drop'")).tolist() == [5]
    assert view.explain(5).labels["manual"] == {"decision": "drop"}
    assert [view.decision(position) for position in (0, 5, 30)] == ["keep", "drop", None]
    view.decide([5], "flag")
    view.close()
    with Catalog(pool) as catalog:
        found = catalog.sql("SELECT manual.decision, count(*) FROM pool GROUP BY ALL ORDER BY ALL").fetchall()
    assert sorted(found, key=str) == [("flag", 1), ("keep", 1), (None, 34)]
    again = View(pool)
    assert again.find(Query(decision="flag")).tolist() == [5]
    again.close()


def test_a_ledger_of_another_pool_is_refused(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool", num_shards=1)
    folder = select(pool, Selection(name="mine")).folder
    write_shard(pool, 1, make_rows(12, seed=9), shard_size=12)
    with (
        Catalog(pool) as catalog,
        pytest.raises(InputError, match=r"the pool has changed since.*`winnow select` again"),
    ):
        read_verdicts(catalog, folder)
