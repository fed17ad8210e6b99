"""Two selections side by side."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.select import Selection, select
from curate.store import Pool
from pipelines.cli import app
from pipelines.diff import diff
from pipelines.explain import tabulate_difference
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool
from tests.pipelines.text import as_text
from tests.pool import FAILED_ROWS


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = annotated_pool(tmp_path_factory.mktemp("diff") / "pool")
    select(pool, Selection(name="low", rules={"few": "caption_num_words < 6", "lang": "caption_language = 'en'"}))
    select(pool, Selection(name="high", rules={"many": "caption_num_words > 3"}, weight="1 + caption_num_words"))
    return pool


def test_both_sides_are_counted_and_explained(pool: Pool) -> None:
    found = diff(pool, "low", "high", num_examples=2)
    rows = [row for row in range(12) if row not in FAILED_ROWS]
    low = {row for row in rows if row < 6 and row % 3}
    high = {row for row in rows if row > 3}
    assert found.num_rows == 36
    assert found.num_both == 3 * len(low & high)
    assert found.only_first.num_samples == 3 * len(low - high)
    assert found.only_second.num_samples == 3 * len(high - low)
    assert found.num_neither == 36 - 3 * len(low | high)
    assert found.jaccard == pytest.approx(len(low & high) / len(low | high))
    assert found.only_first.reasons == {"many": 3 * len(low - high)}
    few, lang = ({row for row in high - low if row >= 6}, {row for row in high - low if row < 6})
    assert found.only_second.reasons == {
        name: 3 * len(group) for name, group in (("few", few), ("lang", lang)) if group
    }
    assert len(found.only_second.examples) == 2
    assert all(row["reason"] in {"few", "lang"} and row["alt_text"] for row in found.only_second.examples)
    assert found == diff(pool, "low", "high", num_examples=2)


def test_weights_are_compared_as_shares_of_the_draws(pool: Pool) -> None:
    select(pool, Selection(name="ones", rules={"many": "caption_num_words > 3"}))
    select(pool, Selection(name="twos", rules={"many": "caption_num_words > 3"}, weight="2"))
    assert diff(pool, "ones", "twos").num_reweighted == 0
    assert diff(pool, "ones", "twos").mean_weights == (1.0, 2.0)
    reweighted = diff(pool, "ones", "high")
    assert reweighted.num_both == reweighted.num_reweighted > 0
    assert reweighted.only_first.examples == reweighted.only_second.examples == ()


def test_the_command_prints_both_sides(pool: Pool) -> None:
    result = CliRunner().invoke(app, ["diff", "low", "high", "--pool", pool.root])
    assert result.exit_code == 0, result.output
    assert "both keep" in result.output
    assert "dropped from" in as_text(tabulate_difference(diff(pool, "low", "high")))
    explained = CliRunner().invoke(
        app, ["why", diff(pool, "low", "high").only_first.examples[0]["uid"], "--pool", pool.root]
    )
    assert explained.exit_code == 0, explained.output
    assert "FAILED, dropped it" in explained.output


def test_names_must_be_of_one_selection(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no selection 'zzz'"):
        diff(pool, "low", "zzz")
    other = annotated_pool(tmp_path / "pool")
    select(other, Selection(name="a"))
    select(other, Selection(name="a", rules={"x": "row > 1"}))
    select(other, Selection(name="b"))
    with pytest.raises(InputError, match="'a' means several selections"):
        diff(other, "a", "b")
