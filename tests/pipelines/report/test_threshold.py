"""Thresholds are read out of rules, whichever way they are written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.catalog import Catalog
from pipelines.report.threshold import find_thresholds
from tests.curate.pool_builder import annotated_pool


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    root: Path = tmp_path_factory.mktemp("threshold") / "pool"
    with Catalog(annotated_pool(root)) as catalog:
        yield catalog


def find(catalog: Catalog, sql: str) -> list[tuple[str, float]]:
    found = find_thresholds(catalog, {"rules": [["rule", sql]]})
    assert {each.rule for each in found} <= {"rule"}
    return [(each.expression, each.value) for each in found]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("b32.clip_score > 0.5", [("b32.clip_score", 0.5)]),
        ("0.5 <= b32.clip_score", [("b32.clip_score", 0.5)]),
        ("NOT caption_num_words < -3", [("caption_num_words", -3.0)]),
        ("caption_num_words BETWEEN 3 AND 75", [("caption_num_words", 3.0), ("caption_num_words", 75.0)]),
        ("least(width, height) >= 32 * 2", [("least(width, height)", 64.0)]),
        (
            "caption_num_words > 2 AND (width > 1e2 OR height < 5)",
            [("caption_num_words", 2.0), ("width", 100.0), ("height", 5.0)],
        ),
        ("coalesce(b32.clip_score, 0) < 0.5", [("COALESCE(b32.clip_score, 0)", 0.5)]),
        ("caption_language = 'en'", []),
        ("NOT is_it", []),
        ("url > 'https'", []),
        ("url > caption_language", [("(url) - (caption_language)", 0.0)]),  # what it is worth is asked of DuckDB later
    ],
)
def test_comparisons(catalog: Catalog, sql: str, expected: list[tuple[str, float]]) -> None:
    assert find(catalog, sql) == expected


def test_two_columns_are_compared_by_their_difference(catalog: Catalog) -> None:
    ((expression, value),) = find(catalog, "greatest(width, height) <= 3 * least(width, height)")
    assert expression == "(greatest(width, height)) - ((3 * least(width, height)))"
    assert value == 0


def test_a_quantile_of_the_pool_is_evaluated(catalog: Catalog) -> None:
    ((expression, value),) = find(
        catalog, "b32.clip_score >= (SELECT quantile_disc(b32.clip_score, 0.5) FROM pool WHERE b32.clip_score < 2)"
    )
    assert expression == "b32.clip_score"
    assert 0 < value < 2


def test_the_cut_at_a_top_share_is_a_threshold(catalog: Catalog) -> None:
    content = {"rules": [], "top": {"by": "b32.clip_score", "fraction": 0.5}, "top_threshold": 0.25}
    (found,) = find_thresholds(catalog, content)
    assert (found.rule, found.expression, found.value) == ("top", "b32.clip_score", 0.25)
