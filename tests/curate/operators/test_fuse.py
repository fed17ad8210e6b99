"""Descriptions merged of what there is: all parts in the prompt, missing ones left out, one alone taken as it is."""

from typing import Any

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.fuse import Fuse
from schemas.errors import InputError
from tests.chat_model import Asked, ChatModel
from tests.contract import check_operator, column, run
from tests.hostile import captions as hostile_captions

FINGERPRINT = "90c9f5751c39e4d3c6c542045bd010506d09fee06fd700a097172b10a0a60ccd"
ROWS: list[tuple[str | None, str | None, list[str | None] | None]] = [
    ("Anna Smith with Rex, 2019", "a woman with a dog", ["woman", "dog", "dog", "", None]),
    ("Anna Smith with Rex", None, ["dog", "a, b"]),
    (None, "a woman\nwith a dog", None),
    ("IMG_1.JPG", " ", []),
    (None, None, ["dog", "park"]),
    (" \n", None, None),
    (None, None, None),
]


def inputs(rows: list[Any]) -> dict[str, Input]:
    alt_text, recaption, tags = zip(*rows, strict=True)
    return {
        "uid": Input.from_column(pa.array([f"{row:032x}" for row in range(len(rows))])),
        "alt_text": Input.from_column(pa.array(alt_text, pa.string())),
        "recaption": Input.from_column(pa.array(recaption, pa.string())),
        "tags": Input.from_column(pa.array(tags, pa.list_(pa.string()))),
    }


def settings(served: ChatModel) -> dict[str, Any]:
    return {"model": "test", "engine": "openai", "url": served.url, "cache": "none"}


def quoted(asked: Asked) -> list[str]:
    return asked.texts[-1].split('"')[1::2]


def merge(asked: Asked) -> str:
    return f"Merged description: {' and '.join(quoted(asked))}"


def test_contract() -> None:
    # An input that is always there, so that a row can lack one: the uid.
    rows = inputs(ROWS)
    rows["uid"] = Input.from_errors(rows["uid"].values.slice(0, 6), [None] * 6 + ["gone"])
    with ChatModel(merge) as served:
        output = check_operator(
            Fuse(**settings(served)),
            fingerprint=FINGERPRINT,
            pinned=Fuse(model="test", engine="openai", url="http://any/v1"),
            inputs=rows,
        )
        prompts = [question.texts[-1].split("\n\n")[1] for question in served.questions]
    assert (
        'Web text: "Anna Smith with Rex, 2019"\nCaption of the picture: "a woman with a dog"\nSeen in the picture: "woman, dog"\n'
        "Answer with the merged description only: one or two sentences on one line."
    ) in prompts
    assert column(output, "fused_caption")[:6] == [
        "Anna Smith with Rex, 2019 and a woman with a dog and woman, dog",
        "Anna Smith with Rex and dog, a b",
        "a woman with a dog",
        "IMG_1.JPG",
        "dog, park",
        None,
    ]
    assert column(output, "fused_caption_parts")[:3] == [
        ["alt_text", "recaption", "tags"],
        ["alt_text", "tags"],
        ["recaption"],
    ]
    assert column(output, "fused_caption_num_tries")[:6] == [1, 1, 0, 0, 1, 0]
    assert output.errors[5] == "nothing to fuse"
    assert column(output, "fused_caption_finish_reason")[2] is None


def test_only_chosen_parts_are_read() -> None:
    with ChatModel(merge) as served:
        operator = Fuse(**settings(served), parts="recaption alt_text")
        assert operator.reads == ("uid", "alt_text", "recaption")
        rows = {name: found for name, found in inputs(ROWS).items() if name != "tags"}
        output = run(operator, rows, len(ROWS))
    assert column(output, "fused_caption")[0] == "Anna Smith with Rex, 2019 and a woman with a dog"
    assert column(output, "fused_caption")[1] == "Anna Smith with Rex"
    assert output.errors[4] == "nothing to fuse"


def test_what_is_refused_says_why() -> None:
    with ChatModel(lambda _: "As an AI language model, I cannot see the picture.") as served:
        output = run(Fuse(**settings(served)), inputs(ROWS[:1]), 1)
    assert column(output, "fused_caption") == [None]
    assert column(output, "fused_caption_refusal") == ["refusal"]
    assert column(output, "fused_caption_num_tries") == [2]
    with ChatModel(lambda _: "a woman with a dog outside") as served:
        assert column(run(Fuse(**settings(served)), inputs(ROWS[:1]), 1), "fused_caption_refusal") == [""]
        strict = run(Fuse(**settings(served), keep_names=True), inputs(ROWS[:1]), 1)
    assert column(strict, "fused_caption_refusal") == ["names"]


def test_hostile_texts_are_rows_like_others() -> None:
    texts = list(hostile_captions().values())
    rows = [(text, texts[-1 - number], [text, "dog"]) for number, text in enumerate(texts)]
    with ChatModel(merge) as served:
        output = run(Fuse(**settings(served)), inputs(rows), len(rows))
        assert all(
            len(question.texts[0]) < 4_000 and question.texts[0].count('"') <= 6 for question in served.questions
        )
    assert all(error is None for error in output.errors)


@pytest.mark.parametrize("parts", ["", "tags tags", "alt_text ocr", "alt_text,tags"])
def test_unknown_parts_are_refused(parts: str) -> None:
    with pytest.raises(InputError, match="it takes some of alt_text recaption tags"):
        Fuse(model="test", engine="openai", url="http://any/v1", parts=parts)
