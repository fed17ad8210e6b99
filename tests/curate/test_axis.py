"""Conditions with values in braces, and what braces are not."""

import pytest

from curate.axis import combine, is_varied, read_condition, read_fractions
from schemas.errors import InputError


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("clip_score > {0.2,0.25, 0.3}", [("0.2",), ("0.25",), ("0.3",)]),
        ("clip_score > {0.1:0.5:0.1}", [("0.1",), ("0.2",), ("0.3",), ("0.4",), ("0.5",)]),
        ("clip_score < {0.3:0.1:-0.1}", [("0.3",), ("0.2",), ("0.1",)]),
        ("clip_score > {0.2}", [("0.2",)]),
        ("clip_score > {0.2,0.2}", [("0.2",)]),
        ("clip_score > {-1e-3,2}", [("-1e-3",), ("2",)]),
        ("language = {'en','it''s, a:b'}", [("'en'",), ("'it''s, a:b'",)]),
        ("{b32.clip_score, siglip.clip_score} > 0", [("b32.clip_score",), ("siglip.clip_score",)]),
        ("a BETWEEN {1,2} AND {5:6:1}", [("1", "5"), ("1", "6"), ("2", "5"), ("2", "6")]),
    ],
)
def test_values_in_braces_are_varied(sql: str, values: list[tuple[str, ...]]) -> None:
    axis = read_condition(sql)
    assert [choice.values for choice in axis.choices] == values
    assert len(axis.titles) == len(values[0])
    assert is_varied(sql)
    assert not any(is_varied(choice.sql) for choice in axis.choices)


def test_sql_around_the_braces_stays() -> None:
    axis = read_condition(" clip_score BETWEEN {0.1,0.2} AND 0.9 AND regexp_matches(alt_text, '[a-z]{2,3}')")
    assert [choice.sql for choice in axis.choices] == [
        "clip_score BETWEEN 0.1 AND 0.9 AND regexp_matches(alt_text, '[a-z]{2,3}')",
        "clip_score BETWEEN 0.2 AND 0.9 AND regexp_matches(alt_text, '[a-z]{2,3}')",
    ]
    assert axis.titles == ("clip_score BETWEEN _ AND 0.9 AND regexp_matches(alt_text, '[a-z]{2,3}')",)


@pytest.mark.parametrize(
    "sql", ["a = '{1,2}'", "{'a': 1}.a = 1", '"{1,2}" > 0', "a > 1", "map {'k': {'v': 2}} IS NULL"]
)
def test_other_braces_are_sql(sql: str) -> None:
    assert not is_varied(sql)
    with pytest.raises(InputError, match="has no values in braces to try; write "):
        read_condition(sql)


def test_a_rule_is_called_by_its_words_unless_it_has_a_name() -> None:
    assert read_condition("b32.clip_score > {0.2,0.3}").rule == "b32_clip_score"
    assert read_condition("{a,b} > 3").rule == "swept"
    assert read_condition("clip_score > {0.2,0.3}", "mismatched").rule == "mismatched"


def test_fractions_are_shares() -> None:
    axis = read_fractions("greatest(a, b)={0.1:0.3:0.1}")
    assert (axis.rule, axis.is_fraction) == ("top_greatest_a_b", True)
    assert [choice.sql for choice in axis.choices] == ["greatest(a, b)"] * 3
    assert read_fractions("a={0.5}").choices[0].values == ("0.5",)


@pytest.mark.parametrize(
    "text", ["clip_score", "clip_score={0,0.5}", "clip_score={0.5,1.5}", "={0.1}", "a=0.3", "a={b}"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--top .* (write --top|is no share)"):
        read_fractions(text)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("a > {}", "has an empty value"),
        ("a > {1,,2}", "has an empty value"),
        ("a > {1:2:0}", "holds no value; write {START:STOP:STEP}"),
        ("a > {2:1:1}", "holds no value"),
        ("a > {0:1:0.0001}", r"holds 10,001 values; 1,000 are the most"),
    ],
)
def test_wrong_values_are_named(sql: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_condition(sql)


def test_axes_make_a_grid_in_which_the_last_changes_first() -> None:
    assert combine([read_condition("a > {1,2}"), read_condition("b > {1,2,3}")]) == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
