"""Mixes of sources, by weight and by cut: shares, rows, what is reported, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.select import Limit, Mix, Selection, SelectReport, select
from curate.source_mix import share_out, target_shares
from curate.store import Pool
from schemas.errors import InputError
from tests.curate.pool_builder import annotate_shard
from tests.pool import FAILED_ROWS, make_pool

SIZE = 30
# Of shard 0, 1 and 2: rows of web, wiki and stock; in each some rows failed, and the last one has no source.
SOURCES = ("web", "wiki", "stock")
SCHEMA = pa.schema([("text_source", pa.string()), ("clip_score", pa.float32())])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = make_pool(tmp_path_factory.mktemp("mix") / "pool", num_shards=4, shard_size=SIZE)
    for shard in pool.shards():
        names = [SOURCES[min(shard, 2)] if row < SIZE - 1 else None for row in range(SIZE)]
        scores = [row / SIZE for row in range(SIZE)]
        annotate_shard(pool, shard, "s", {"text_source": names, "clip_score": scores}, SCHEMA)
    return pool


def counts(pool: Pool) -> dict[str, int]:
    good = SIZE - 1 - len([row for row in FAILED_ROWS if row < SIZE - 1])
    assert len(pool.shards()) == 4
    return {"web": good, "wiki": good, "stock": 2 * good}


def run(pool: Pool, name: str, **settings: Any) -> tuple[SelectReport, list[dict[str, Any]]]:
    report = select(pool, Selection(name=name, **settings))
    rows = pool.read_table(f"{report.folder}/ledger.parquet").to_pylist()
    sources = [SOURCES[min(position // SIZE, 2)] for position in range(len(rows))]
    return report, [{**row, "source": source} for row, source in zip(rows, sources, strict=True)]


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    kept = [row for row in rows if row["kept"]]
    total = sum(row["weight"] for row in kept)
    return {name: sum(row["weight"] for row in kept if row["source"] == name) / total for name in SOURCES}


def test_weights_draw_the_shares_and_keep_every_row(pool: Pool) -> None:
    mix = Mix(by="s.text_source", shares={"web": 3, "wiki": 1, "stock": 1})
    report, rows = run(pool, "weights", mix=mix, weight="1 + s.clip_score")
    assert shares(rows) == pytest.approx({"web": 0.6, "wiki": 0.2, "stock": 0.2})
    kept = [row for row in rows if row["kept"]]
    assert len(kept) == sum(counts(pool).values())
    assert all(
        (position % SIZE == SIZE - 1) == (row["first_failing_rule"] == "mix")
        for position, row in enumerate(rows)
        if row["status"] == "success"
    )
    # Ratios within a source, and the sum of all weights, are as they were.
    plain = [
        row["weight"]
        for row in run(pool, "plain", rules={"named": "s.text_source IS NOT NULL"}, weight="1 + s.clip_score")[1]
    ]
    before = {row["uid"]: weight for row, weight in zip(rows, plain, strict=True)}
    factors = {
        name: {round(row["weight"] / before[row["uid"]], 9) for row in kept if row["source"] == name}
        for name in SOURCES
    }
    assert all(len(found) == 1 for found in factors.values())
    assert sum(row["weight"] for row in kept) == pytest.approx(sum(before[row["uid"]] for row in kept))
    found = {entry.source: entry for entry in report.mix}
    assert [entry.source for entry in report.mix] == ["web", "stock", "wiki"]
    assert found["web"].target_share == found["web"].draw_share == pytest.approx(0.6)
    assert found["stock"].num_rows == counts(pool)["stock"]
    assert found["stock"].row_share == pytest.approx(0.5)


def test_a_cut_keeps_as_many_rows_as_the_shares_allow(pool: Pool) -> None:
    mix = Mix(by="s.text_source", shares={"web": 0.5, "stock": 0.5}, how="cut")
    report, rows = run(pool, "cut", mix=mix)
    web = counts(pool)["web"]
    assert [(entry.source, entry.num_rows, entry.draw_share) for entry in report.mix] == [
        ("stock", web, 0.5),
        ("web", web, 0.5),
    ]
    assert report.num_kept == 2 * web
    assert {row["source"] for row in rows if row["first_failing_rule"] == "mix"} == set(SOURCES)
    assert [row.rule for row in report.funnel] == ["downloaded", "mix"]


def test_a_cut_takes_the_best_or_draws_by_seed(pool: Pool) -> None:
    equal = dict.fromkeys(SOURCES, 1.0)
    best = Mix(by="s.text_source", shares=equal, how="cut", num_samples=10, order="s.clip_score")
    report, rows = run(pool, "best", mix=best)
    assert [entry.num_rows for entry in report.mix] == [4, 3, 3]
    web = [position for position, row in enumerate(rows[:SIZE]) if row["kept"]]
    assert web == [row for row in range(SIZE - 1) if row not in FAILED_ROWS][-len(web) :]
    drawn = Mix(by="s.text_source", shares=equal, how="cut", num_samples=10)
    first, again, other = (
        [row["kept"] for row in run(pool, f"draw{n}", mix=drawn, seed=seed)[1]] for n, seed in enumerate((0, 0, 1))
    )
    assert first == again != other
    assert sum(other) == 10


def test_a_temperature_levels_sources(pool: Pool) -> None:
    for temperature, stock in ((1.0, 0.5), (2.0, 2**0.5 / (2 + 2**0.5)), (1e6, 1 / 3)):
        _, rows = run(pool, f"t{temperature}", mix=Mix(by="s.text_source", temperature=temperature))
        assert shares(rows)["stock"] == pytest.approx(stock)


def test_a_limit_after_a_mix_by_weight_keeps_the_shares(pool: Pool) -> None:
    mix = Mix(by="s.text_source", shares={"web": 0.9, "stock": 0.1})
    report, rows = run(pool, "limited", mix=mix, limit=Limit(num_samples=40))
    assert report.num_kept == 40
    assert shares(rows)["web"] == pytest.approx(0.9)


def test_the_realised_mix_is_on_disk_and_comes_back(pool: Pool) -> None:
    selection = Selection(name="disk", mix=Mix(by="s.text_source", shares={"web": 1, "wiki": 1}))
    report = select(pool, selection)
    content = json.loads(pool.read_bytes(f"{report.folder}/selection.json"))
    assert content["mix"]["shares"] == {"web": 1, "wiki": 1}
    assert content["mix_shares"] == {"web": 0.5, "wiki": 0.5}
    assert [entry["source"] for entry in content["realised_mix"]] == ["web", "wiki"]
    again = select(pool, selection)
    assert again.was_current
    assert again.mix == report.mix


def test_another_mix_is_another_selection_and_none_is_as_before(pool: Pool) -> None:
    plain = Selection(name="same")
    assert "mix" not in plain.settings()
    one, two = (select(pool, Selection(name="same", mix=Mix(by="s.text_source", temperature=t))) for t in (1.0, 2.0))
    assert len({select(pool, plain).fingerprint, one.fingerprint, two.fingerprint}) == 3


@pytest.mark.parametrize(
    ("num", "wanted"),
    [(None, {"a": 7, "b": 14}), (10, {"a": 3, "b": 7}), (1, {"a": 0, "b": 1}), (21, {"a": 7, "b": 14})],
)
def test_rows_are_shared_out_to_the_nearest(num: int | None, wanted: dict[str, int]) -> None:
    assert share_out({"a": 1 / 3, "b": 2 / 3}, {"a": 7, "b": 100}, num) == wanted


def test_shares_are_never_beyond_what_is_there() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        counts = {str(n): int(count) for n, count in enumerate(random.integers(1, 50, random.integers(1, 7)))}
        asked = Mix(by="x", shares={name: float(random.random() + 0.01) for name in counts})
        shares = target_shares(asked, counts)
        rows = share_out(shares, counts, None)
        assert all(rows[name] <= counts[name] for name in counts)
        total = sum(rows.values())
        assert all(abs(rows[name] - total * shares[name]) < 1 for name in counts)


def test_impossible_mixes_are_refused(pool: Pool) -> None:
    for settings, message in (
        (
            {"shares": {"books": 1.0}},
            "gives a share to 'books', of which no row is left; s.text_source has 'stock', 'web', 'wiki'",
        ),
        (
            {"shares": {"web": 1, "stock": 1}, "how": "cut", "num_samples": 5_000},
            "mix cannot give 5,000 rows: of 'web', with a share of 0.5, ",
        ),
    ):
        with pytest.raises(InputError, match=message):
            select(pool, Selection(name="refused", mix=Mix(by="s.text_source", **settings)))
    with pytest.raises(InputError, match=r"mix by: .*did you mean s\.text_source"):
        select(pool, Selection(name="refused", mix=Mix(by="s.text_sourc", temperature=1)))
    with pytest.raises(InputError, match="every row of 'web' has weight 0, so no mix can draw it"):
        weight = "CASE WHEN s.text_source = 'web' THEN 0 ELSE 1 END"
        select(pool, Selection(name="refused", weight=weight, mix=Mix(by="s.text_source", temperature=1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs either shares"),
        ({"shares": {"a": 1}, "temperature": 2.0}, "needs either shares"),
        ({"shares": {"a": 0.0}}, "shares must be above 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": float("inf")}, "and finite: 1000 makes sources all alike"),
        ({"temperature": 1.0, "how": "rows"}, "how is 'rows'; it must be one of weights, cut"),
        ({"temperature": 1.0, "order": "x"}, "are of a cut"),
        ({"temperature": 1.0, "how": "cut", "num_samples": 0}, "num_samples is 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mix(by="x", **settings)


def test_a_limit_may_not_undo_a_cut() -> None:
    with pytest.raises(InputError, match=r"give mix\.num_samples in place of limit"):
        Selection(mix=Mix(by="x", temperature=1.0, how="cut"), limit=Limit(num_samples=5))


def test_nothing_left_is_a_result(pool: Pool) -> None:
    report, _ = run(pool, "none", rules={"no": "false"}, mix=Mix(by="s.text_source", temperature=1.0))
    assert (report.num_kept, report.mix) == (0, ())


def test_a_name_with_a_quote_is_a_name(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=12)
    columns = {"text_source": ["it's" if row % 2 else "x" for row in range(12)], "clip_score": [0.0] * 12}
    annotate_shard(pool, 0, "s", columns, SCHEMA)
    report = select(pool, Selection(name="q", mix=Mix(by="s.text_source", shares={"it's": 1.0}, how="cut")))
    assert [entry.source for entry in report.mix] == ["it's"]
