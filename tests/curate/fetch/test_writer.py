"""The JSON member of a sample."""

import datetime
import json
from decimal import Decimal

import pytest

from curate.fetch.writer import _to_json, _to_text

FLAT = {
    "uid": "0" * 32,
    "num_occurrences": 1,
    "caption": 'Größe "x", 1: 2\n\u2028 \ud800',
    "url": "http://example.org/a, b: c",
    "error_message": None,
    "ratio": 1.5,
    "nothing": float("nan"),
    "is_there": True,
    "bytes": b"ab",
    "day": datetime.date(2020, 1, 1),
    "price": Decimal("1.10"),
    "exif": '{"a": "b", "c": "d"}',
}


@pytest.mark.parametrize(
    "extra", [{}, {"list": [1, {"a": b"x"}]}, {"empty": {}}, {"pairs": [("a", 1)]}, {"pair": (1, 2)}]
)
def test_a_row_is_written_as_indented_json(extra: dict[str, object]) -> None:
    row = {**FLAT, **extra}
    assert _to_json(row) == json.dumps(row, indent=4, default=_to_text)
    assert json.loads(_to_json(row))["caption"] == FLAT["caption"]
