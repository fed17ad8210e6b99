"""Negatives by a model: JSON of the schema or nothing."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.columns import Input
from curate.operators.negatives_llm import NegativesLlm, is_negative, read_negatives
from schemas.errors import InputError
from tests.chat_model import Asked, ChatModel
from tests.contract import check_operator, column, run
from tests.hostile import captions as hostile_captions

FINGERPRINT = "9a989073f8559925fa02ba4f0555f88aaee0d100007319f1733fe619ec184b62"
CAPTION = "a brown dog chases a small cat in the park"


def inputs(captions: list[str | None]) -> dict[str, Input]:
    uids = pa.array([f"{row:032x}" for row in range(len(captions))])
    return {"uid": Input.from_column(uids), "alt_text": Input.from_column(pa.array(captions, pa.string()))}


def settings(served: ChatModel) -> dict[str, Any]:
    return {"model": "test", "engine": "openai", "url": served.url, "cache": "none"}


def as_json(*entries: Any) -> str:
    return json.dumps({"negatives": list(entries)})


def entry(caption: str, kind: str = "attribute") -> dict[str, str]:
    return {"kind": kind, "caption": caption}


def change(asked: Asked) -> str:
    caption = asked.texts[-1].split('"')[1]
    return (
        f"```json\n{as_json(entry(f'{caption} at night', 'relation'), entry(f'{caption} and a tram', 'object'))}\n```"
    )


def test_contract() -> None:
    with ChatModel(change) as served:
        output = check_operator(
            NegativesLlm(**settings(served)),
            fingerprint=FINGERPRINT,
            pinned=NegativesLlm(model="test", engine="openai", url="http://any/v1"),
            inputs=inputs([CAPTION, None, " ", "a red bus"]),
        )
        turns = served.questions[0].turns
    assert output.errors == [None, "no alt_text", "blank caption", None]
    assert column(output, "negatives")[0] == [f"{CAPTION} at night", f"{CAPTION} and a tram"]
    assert column(output, "negative_kinds")[0] == ["relation", "object"]
    assert column(output, "num_negatives") == [2, None, 0, 2]
    assert column(output, "negatives_refusal")[0] == ""
    # The examples are what is asked for.
    assert [role for role, _ in turns] == ["user", "assistant"] * 3 + ["user"]
    for (_, caption), (_, shown) in zip(turns[::2], turns[1::2], strict=False):
        assert read_negatives(shown, caption.split('Caption: "')[1].rstrip('"'), 2)[0] == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("no JSON", "json"),
        ('{"negatives": [', "json"),
        ("[" * 100_000, "json"),
        ("{" * 100_000 + "}" * 100_000, "json"),
        (as_json(), "negatives"),
        ('{"negatives": "x"}', "schema"),
        ('{"captions": []}', "schema"),
        (as_json("x"), "schema"),
        (as_json({"kind": "attribute"}), "schema"),
        (as_json(entry("a white dog", "colour")), "schema"),
        (as_json({**entry("a white dog"), "note": "x"}), "schema"),
        (as_json({"kind": "object", "caption": 7}), "schema"),
        (as_json(entry(" ")), "schema"),
        (as_json(entry(CAPTION.upper())), "negatives"),
        (as_json(entry("the brown dog chases the small cat in a park")), "negatives"),
        (as_json(entry("ein Hund")), "unrelated"),
        (as_json(entry("a tram stops at a crowded station, and a dog")), "negatives"),
        (as_json(entry("I'm sorry, but I cannot do that to a dog")), "refusal"),
    ],
)
def test_answers_that_are_not_taken(answer: str, reason: str) -> None:
    assert read_negatives(answer, CAPTION, 2) == (reason, [])
    with ChatModel(lambda _: answer) as served:
        output = run(NegativesLlm(**settings(served)), inputs([CAPTION]), 1)
    assert column(output, "negatives") == [[]]
    assert column(output, "negatives_refusal") == [reason]
    assert column(output, "negatives_num_tries") == [2]


def test_of_several_those_that_are_negatives_are_taken_once() -> None:
    good = "a white dog chases a small cat in the park"
    answer = f"Sure! {as_json(entry(CAPTION), entry(good), entry(good.title()), entry('a brown dog chases a big cat in the park'))}"
    assert read_negatives(answer, CAPTION, 1) == ("", [("attribute", good)])
    assert len(read_negatives(answer, CAPTION, 9)[1]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a small cat chases a brown dog in the park", True),
        ("brown dog chases small cat in park", False),
        ("a dog", False),
        (CAPTION, False),
    ],
)
def test_what_is_a_negative(text: str, expected: bool) -> None:
    assert is_negative(text, CAPTION) is expected


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.floats(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_any_json_is_read(content: Any) -> None:
    reason, found = read_negatives(json.dumps({"negatives": content}), CAPTION, 2)
    assert reason
    assert found == []


def test_hostile_captions_are_rows_like_others() -> None:
    hostile = list(hostile_captions().values())
    with ChatModel(change) as served:
        output = run(NegativesLlm(**settings(served)), inputs(hostile), len(hostile))
        assert all(question.texts[-1].count('"') == 2 for question in served.questions)
    assert column(output, "num_negatives")[-1] == 2
    with pytest.raises(InputError, match="count and num_tries"):
        NegativesLlm(model="test", engine="openai", url="http://any/v1", count=0)
