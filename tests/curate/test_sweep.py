"""Sweeps over small pools: every number is what `select` and the rows themselves say."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.axis import read_condition, read_fractions
from curate.catalog import Catalog
from curate.select import select
from curate.selection import Limit, Mix, PerGroup, Selection, Top
from curate.store import Pool
from curate.sweep import SweepConfig, SweepReport, sweep
from schemas.errors import InputError, MissingColumnsError
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool, fingerprint_of
from tests.pool import FAILED_ROWS

THRESHOLDS = read_condition("b32.clip_score > {0.05,1,1.5,7}")
WORDS = read_condition("caption_num_words >= {2:8:2}")
ENGLISH = {"lang": "caption_language = 'en'"}
CUTS: dict[str, Any] = {
    "top": {"top": Top(by="b32.clip_score", fraction=0.5)},
    "top of the pool": {"top": Top(by="b32.clip_score", fraction=0.5, of="pool")},
    "per_group": {"per_group": PerGroup(by="caption_language", num_samples=3, order="b32.clip_score")},
    "mix": {"mix": Mix(by="caption_language", shares={"en": 1, "de": 3}), "weight": "1 + row"},
    "mix by cut": {"mix": Mix(by="caption_language", shares={"en": 1, "de": 1}, how="cut")},
    "limit": {"limit": Limit(num_samples=5, by="caption_num_words"), "weight": "0.5 + row"},
    "all": {
        "top": Top(by="b32.clip_score", fraction=0.7),
        "per_group": PerGroup(by="shard", num_samples=5),
        "limit": Limit(num_samples=8),
    },
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return annotated_pool(tmp_path_factory.mktemp("sweep") / "pool")


def kept_rows(pool: Pool, selection: Selection) -> tuple[set[str], float]:
    """Select, and return the uids kept and the effective samples."""
    report = select(pool, selection)
    table = pool.read_table(f"{report.folder}/selected.parquet", ["uid"])
    return set(table["uid"].to_pylist()), report.effective_samples


def check(pool: Pool, report: SweepReport) -> None:
    """Compare a sweep with a selection of each of its points, and with the rows that these keep."""
    found = [kept_rows(pool, point.selection) for point in report.points]
    with Catalog(pool) as catalog:
        rows = catalog.sql("SELECT uid, b32.clip_score, caption_language FROM pool").fetchall()
    for point, (uids, effective) in zip(report.points, found, strict=True):
        assert point.num_kept == len(uids)
        assert point.effective_samples == pytest.approx(effective)
        own = [row for row in rows if row[0] in uids]
        mean = point.means["b32.clip_score"]
        assert (mean is None) == (not own)
        if mean is not None:
            assert mean == pytest.approx(sum(row[1] for row in own) / len(own))
        counts = point.counts["caption_language"]
        assert {value: count for value, count in counts.items() if count} == {
            value: count for value in ("en", "de") if (count := sum(row[2] == value for row in own))
        }
        assert sum(point.shares("caption_language").values()) == pytest.approx(1 if own else 0)
    for first, (own, _) in enumerate(found):
        for second, (other, _) in enumerate(found):
            assert report.overlaps[first, second] == len(own & other)
            assert report.jaccard(first, second) == (len(own & other) / len(own | other) if own | other else 1.0)
            assert report.containment(first, second) == (len(own & other) / len(own) if own else 1.0)


def go(pool: Pool, *axes: Any, **settings: Any) -> SweepReport:
    measured = {"means": ("b32.clip_score",), "shares": ("caption_language",)}
    return sweep(pool, SweepConfig(axes=axes, **{**measured, **settings}))


def test_thresholds_over_rules_that_stay(pool: Pool) -> None:
    base = Selection(name="base", rules={**ENGLISH, "words": "caption_num_words > 2"}, weight="1 + row")
    report = go(pool, THRESHOLDS, base=base)
    check(pool, report)
    assert [point.values for point in report.points] == [
        {"b32.clip_score > _": value} for value in ("0.05", "1", "1.5", "7")
    ]
    assert [point.selection.name for point in report.points] == ["base-0.05", "base-1", "base-1.5", "base-7"]
    assert report.points[0].selection.rules == {**base.rules, "b32_clip_score": "b32.clip_score > 0.05"}
    assert (report.num_rows, report.num_downloaded) == (36, 36 - 3 * len(FAILED_ROWS))
    assert report.num_candidates == report.points[1].num_kept + sum(
        row % 3 > 0 and row > 2 and row not in FAILED_ROWS for row in range(12)
    )
    assert report.points[-1].num_kept == 0


def test_two_columns_make_a_grid(pool: Pool) -> None:
    report = go(pool, THRESHOLDS, WORDS)
    check(pool, report)
    assert len(report.points) == 16
    assert len({point.selection.name for point in report.points}) == 16


def test_a_rule_of_the_base_is_varied_where_it_stands(pool: Pool) -> None:
    base = Selection(rules={"score": "b32.clip_score > 99", **ENGLISH})
    report = go(pool, read_condition("b32.clip_score > {0.5,1.5}", "score"), base=base)
    check(pool, report)
    assert list(report.points[0].selection.rules) == ["score", "lang"]
    assert report.points[0].num_kept > 0


@pytest.mark.parametrize("name", CUTS)
def test_cuts_are_made_for_every_point(name: str, pool: Pool) -> None:
    base = Selection(name=f"cut-{name.replace(' ', '-')}", rules={"words": "caption_num_words > 1"}, **CUTS[name])
    check(pool, go(pool, read_condition("b32.clip_score > {0.05,1}"), base=base))


@pytest.mark.parametrize("of", ["rules", "pool"])
def test_shares_are_those_of_a_top(of: str, pool: Pool) -> None:
    base = Selection(name=f"share-{of}", rules=ENGLISH, top=Top(by="siglip.clip_score", fraction=0.1))
    report = go(pool, read_fractions("b32.clip_score={0.1:1:0.3}"), base=base, top_of=of)
    check(pool, report)
    for point in report.points:
        top = Top(by="b32.clip_score", fraction=float(point.values["top of b32.clip_score"]), of=of)
        assert kept_rows(pool, Selection(name="top", rules=ENGLISH, top=top))[0] == kept_rows(pool, point.selection)[0]


def test_shares_of_two_scores_make_a_grid_and_know_no_order(pool: Pool) -> None:
    axes = [read_fractions(f"{label}.clip_score={{0.3,0.8}}") for label in ("b32", "siglip")]
    forth, back = go(pool, *axes), go(pool, *reversed(axes))
    check(pool, forth)
    assert sorted(p.num_kept for p in forth.points) == sorted(p.num_kept for p in back.points)


def test_scores_without_a_value_count_nowhere(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool", num_shards=1)
    scores = [math.nan, 0.1, 0.2, 0.3, None, 0.5, math.nan, 0.7, 0.8, 0.9, 1.0, 1.1]
    annotate_shard(pool, 0, "b32", {"clip_score": scores}, SCORE)
    report = go(pool, read_fractions("b32.clip_score={0.25,1}"), base=Selection(name="nan"))
    # Rows 1 and 3 were not downloaded; 7 rows have a number, and the one at int(7 / 4) = 1 is 1.0.
    assert [point.num_kept for point in report.points] == [2, 7]
    for point in report.points:
        assert select(pool, point.selection).num_kept == point.num_kept
    assert report.points[1].means["b32.clip_score"] == pytest.approx((0.2 + 0.5 + 0.7 + 0.8 + 0.9 + 1.0 + 1.1) / 7)


def test_what_is_measured_by_itself(pool: Pool) -> None:
    report = sweep(pool, SweepConfig(axes=(read_condition("caption_num_words > {3,4}"),)))
    assert list(report.points[0].means) == ["b32.clip_score", "siglip.clip_score"]
    assert list(report.points[0].counts) == []


def test_what_is_measured_by_itself_is_complete_and_a_number(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool", num_shards=2)
    listed = pa.schema([("caption_score", pa.list_(pa.float32())), ("source", pa.string())])
    for shard in (0, 1):
        columns = {"caption_score": [[0.5]] * 12, "source": ["web"] * 12}
        annotate_shard(pool, shard, "lists", columns, listed, operator="lists")
    (path,) = Path(pool.root).glob(f"annotations/clip_score/{fingerprint_of('siglip')[:12]}/00001.parquet")
    path.unlink()
    report = sweep(pool, SweepConfig(axes=(read_condition("row > {3,4}"),)))
    assert list(report.points[0].means) == ["b32.clip_score"]
    assert report.points[0].counts == {"lists.source": {"web": report.points[0].num_kept}}


def test_many_values_become_the_most_frequent_and_all_others(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool", num_shards=4)
    report = go(pool, read_condition("row >= {0,6}"), shares=("uid", "nullif(row, 2)"))
    uids = report.points[0].counts["uid"]
    assert len(uids) == 31
    assert uids["(others)"] == report.points[0].num_kept - sum(uids[name] for name in list(uids)[:30]) > 0
    assert report.points[0].counts["nullif(row, 2)"]["(null)"] == 4


def test_a_weight_is_computed_for_kept_rows_only(pool: Pool) -> None:
    report = go(pool, read_condition("row > {4,6}"), base=Selection(name="weight", weight="ln(row - 4)"))
    check(pool, report)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("b32.clip_scor > {1,2}", r"rule 'b32_clip_scor' with 1: .*did you mean b32.clip_score"),
        ("caption_num_words + {1,2}", "is INTEGER, not a condition"),
        ("clip_score > {1,2}", "'clip_score' is a column of several tables; say b32.clip_score or siglip.clip_score"),
        ("alt_text::INTEGER > {1,2}", "rule 'alt_text_INTEGER' with 1: Could not convert"),
        ("random() > {0.1,0.2}", "uses random, which gives another selection every time"),
        ("b32.clip_score > {0:1:0.01}", "101 values are swept; 63 are the most"),
    ],
)
def test_wrong_conditions_are_named(sql: str, message: str, pool: Pool) -> None:
    with pytest.raises((InputError, MissingColumnsError), match=message):
        go(pool, read_condition(sql))


def test_grids_that_are_too_large_are_refused(pool: Pool) -> None:
    axes = [read_condition(f"{name} > {{0:11:1}}") for name in ("row", "shard", "caption_num_words")]
    with pytest.raises(InputError, match="the grid has 1,728 points; 1,000 are the most"):
        go(pool, *axes)
    with pytest.raises(InputError, match="the grid has 144 points, and the base cuts what its rules leave"):
        go(pool, *axes[:2], base=Selection(limit=Limit(num_samples=3)))


def test_nothing_varied_and_names_that_clash_are_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match="nothing is varied; give a condition with values in braces"):
        go(pool)
    with pytest.raises(InputError, match="two conditions are called 'row'; give them names with --rule NAME=SQL"):
        go(pool, read_condition("row > {1,2}"), read_condition("row < {8,9}"))
    with pytest.raises(InputError, match="top_of is 'all'; it must be rules or pool"):
        go(pool, WORDS, top_of="all")


def test_an_unfinished_annotation_is_refused_with_its_command(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool")
    for path in Path(pool.root).glob("annotations/clip_score/*/00001.parquet"):
        path.unlink()
    with pytest.raises(MissingColumnsError, match="winnow annotate --pool"):
        go(pool, THRESHOLDS)
