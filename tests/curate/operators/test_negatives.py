"""Negatives as columns, by seed and uid."""

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.negatives import Negatives
from schemas.errors import InputError
from tests.contract import check_operator, column, run

FINGERPRINT = "510d142ed51ad0d2dd38121dcafe1bcd9d841a5561c3f90da6f81c632117be30"
CAPTION = "A black cat sits on a red sofa next to an old dog in a small garden"


def inputs(captions: list[str | None]) -> dict[str, Input]:
    uids = pa.array([f"{row:032x}" for row in range(len(captions))])
    return {"uid": Input.from_column(uids), "alt_text": Input.from_column(pa.array(captions, pa.string()))}


def test_contract() -> None:
    made = inputs([CAPTION, None, "", "a cat", *[CAPTION] * 5])
    output = check_operator(Negatives(), fingerprint=FINGERPRINT, inputs=made)
    assert output.errors[1] == "no alt_text"
    assert column(output, "negatives")[1:4] == [None, [], []]
    assert column(output, "num_negatives")[0] == len(column(output, "negatives")[0]) >= 3
    assert column(output, "negative_kinds")[0] == ["noun", "adjective", "noun_phrase"]
    first = column(output, "negative_swaps")[0][0].split(" <-> ")
    assert all(word in CAPTION for word in first)
    # Every uid draws for itself.
    assert len({tuple(found) for found in column(output, "negatives")[4:]}) > 1


def test_seed_and_count() -> None:
    rows = inputs([CAPTION] * 8)
    plain = column(run(Negatives(), rows, 8), "negatives")
    assert plain == column(run(Negatives(), rows, 8), "negatives")
    assert plain != column(run(Negatives(seed=1), rows, 8), "negatives")
    more = run(Negatives(per_kind=3, kinds="noun adjective"), rows, 8)
    assert column(more, "num_negatives")[0] == 6
    assert column(more, "negative_kinds")[0] == ["noun"] * 3 + ["adjective"] * 3


@pytest.mark.parametrize("kinds", ["", "nouns", "noun,verb"])
def test_unknown_kinds_are_refused(kinds: str) -> None:
    with pytest.raises(InputError, match="it takes some of noun adjective verb"):
        Negatives(kinds=kinds)
