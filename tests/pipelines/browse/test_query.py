"""The state of an address: read, checked, and told as a rule."""

import pytest

from pipelines.browse.numbers import Range
from pipelines.browse.query import MAX_RANGES, Query, parse_whole
from schemas.errors import InputError


def test_an_address_is_a_query() -> None:
    found = Query.parse({
        "filter": [" a > 1 "],
        "range": ["b.c:1..", "b.d:..2"],
        "selection": ["mine"],
        "outcome": ["rule:words"],
        "decision": ["none"],
        "sort": ["-b.c"],
    })
    assert found == Query(
        filter="a > 1",
        ranges=(Range.parse("b.c:1.."), Range.parse("b.d:..2")),
        selection="mine",
        outcome="rule:words",
        decision="none",
        sort="b.c",
        descending=True,
    )
    assert Query.parse({}) == Query()


def test_filter_and_thresholds_make_one_rule() -> None:
    ranges = (Range.parse("b.c:1..2"),)
    assert Query(filter="a OR b -- remark", ranges=ranges).to_rule() == "(a OR b -- remark\n) AND b.c >= 1 AND b.c <= 2"
    assert Query(filter="a OR b").to_rule() == "a OR b"
    assert Query().to_rule() == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decision": "burn"}, "must be one of keep, drop, flag, none, any"),
        ({"outcome": "kept"}, "choose a selection as well"),
        ({"ranges": (Range(column="a"),) * (MAX_RANGES + 1)}, "sliders are too many"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Query(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["-1", "x", "1e3", "", "99999999999999", "\u0663", "241"])
def test_whole_numbers(text: str) -> None:
    assert parse_whole({}, "limit", 60, 240) == 60
    assert parse_whole({"limit": ["7"]}, "limit", 60, 240) == 7
    with pytest.raises(InputError, match="whole number from 0 to 240"):
        parse_whole({"limit": [text]}, "limit", 60, 240)
