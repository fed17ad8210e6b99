"""Sentences as columns: exact places, lists of texts, strange captions."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.operators.sub_captions import SubCaptions
from schemas.errors import InputError
from tests.contract import check_operator, column

FINGERPRINT = "22d638ee7c2e5074e53106b1ae15eb6add0198a48282b2fd1e146c0cadb2cf61"


def measure(value: str | list[str | None], **settings: int) -> dict[str, Any]:
    kind = pa.string() if isinstance(value, str) else pa.list_(pa.string())
    found = SubCaptions(**settings).load()(pa.table({"alt_text": pa.array([value], kind)}))
    return {name: values[0] for name, values in found.items()}


def test_contract() -> None:
    output = check_operator(SubCaptions(), fingerprint=FINGERPRINT)
    assert column(output, "sub_captions")[0] == ["a red circle number 0 on grey ground"]
    assert column(output, "sub_caption_starts")[0] == [0]
    assert column(output, "sub_caption_ends")[0] == [len("a red circle number 0 on grey ground")]


LONG = "A red door stands open. Behind it: 3.5 m of stairs. Dark! A cat sits on the last step."


def test_sentences_with_their_places() -> None:
    found = measure(LONG)
    assert found["sub_captions"] == [
        "A red door stands open.",
        "Behind it: 3.5 m of stairs.",
        "A cat sits on the last step.",
    ]
    assert found["num_sub_captions"] == 3
    assert [
        LONG[start:end] for start, end in zip(found["sub_caption_starts"], found["sub_caption_ends"], strict=True)
    ] == found["sub_captions"]


def test_settings() -> None:
    assert measure(LONG, min_words=1)["num_sub_captions"] == 4
    assert measure(LONG, min_words=6)["sub_captions"] == ["Behind it: 3.5 m of stairs.", "A cat sits on the last step."]
    assert measure(LONG, max_sub_captions=1)["sub_captions"] == ["A red door stands open."]
    merged = measure(LONG, merge=2)["sub_captions"]
    assert merged == ["A red door stands open. Behind it: 3.5 m of stairs.", "A cat sits on the last step."]
    with pytest.raises(InputError, match="min_words and merge must be 1 or more"):
        SubCaptions(merge=0)


def test_a_list_is_cut_text_by_text() -> None:
    found = measure(["A dog runs. It is red.", None, "", "A cat sleeps."])
    assert found["sub_captions"] == ["A dog runs.", "It is red.", "A cat sleeps."]
    assert found["sub_caption_texts"] == [0, 0, 3]
    assert found["sub_caption_starts"] == [0, 12, 0]


@given(st.text() | st.lists(st.none() | st.text(), max_size=4))
def test_whatever_the_caption_says_the_pieces_are_its_own(value: Any) -> None:
    found = measure(value, min_words=1)
    texts = [value] if isinstance(value, str) else value
    places = zip(found["sub_caption_texts"], found["sub_caption_starts"], found["sub_caption_ends"], strict=True)
    assert [texts[number][start:end] for number, start, end in places] == found["sub_captions"]
    assert found["num_sub_captions"] == len(found["sub_captions"])
