"""Captions of pictures over real HTTP: the forms, the right picture, what is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.models.captioner import CAPTIONER_TYPES
from curate.operators.recaption import Recaption
from schemas.errors import InputError
from tests.captioner import make_captioner
from tests.chat_model import Asked, ChatModel
from tests.contract import NUM_ROWS, check_operator, column, make_inputs, run
from tests.hostile import hostile_rows
from tests.pool import CORRUPT_ROW, FAILED_ROWS, Row, make_rows

FINGERPRINT = "2ebba94c9d37f9345963f5009e7cd18aabf1d541b33bf5fb5f357652fcca0926"


def inputs(rows: list[Row]) -> dict[str, Input]:
    uids = pa.array([f"{row:032x}" for row in range(len(rows))])
    return {"uid": Input.from_column(uids), "image": make_inputs(_Image(), rows)["image"]}  # type: ignore[arg-type]


class _Image:
    """Stands for an operator of one input."""

    reads = ("image",)


def settings(served: ChatModel) -> dict[str, Any]:
    return {"model": "test", "engine": "openai", "url": served.url, "cache": "none"}


def sees(asked: Asked) -> str:
    """Say what colour is in the middle of the picture, as far as bytes tell: its length."""
    return f"a picture of {len(asked.image)} bytes"


def test_contract() -> None:
    with ChatModel(sees) as served:
        output = check_operator(
            Recaption(**settings(served), form="question"),
            fingerprint=FINGERPRINT,
            pinned=Recaption(model="test", engine="openai", url="http://any/v1"),
            inputs=inputs(make_rows(NUM_ROWS)),
        )
        assert all(question.turns == (("user", "What does the image describe?"),) for question in served.questions)
        assert all(question.image.startswith(b"\xff\xd8") for question in served.questions)
    texts = column(output, "recaption")
    assert texts[CORRUPT_ROW] is None
    assert all(texts[row] is None for row in FAILED_ROWS)
    assert str(texts[0]).startswith("a picture of ")
    assert len({text for text in texts if text}) > 10  # every row its own picture
    assert column(output, "recaption_refusal")[0] == ""
    assert column(output, "recaption_finish_reason")[0] == "stop"
    assert '"max_new_tokens":40' in column(output, "recaption_sampling")[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"form": "plain"}, ""),
        ({"form": "question"}, "What does the image describe?"),
        ({"form": "question", "length": "long"}, "in detail?"),
        ({"form": "blip"}, "a photo of"),
        ({"label": "auto"}, "Write a caption of the picture in one sentence"),
        ({"form": "chat"}, "Write a caption of the picture in one sentence"),
        ({"form": "chat", "domain": "satellite"}, "land use, buildings and their density"),
        (
            {"form": "chat", "domain": "medical", "length": "long"},
            "Describe a medical picture in four to eight sentences",
        ),
        ({"prompt": "Was ist zu sehen?"}, "Was ist zu sehen?"),
    ],
)
def test_what_is_asked(given: dict[str, Any], words: str) -> None:
    with ChatModel(sees) as served:
        output = run(Recaption(**settings(served), **given), inputs(make_rows(1)), 1)
        assert words in served.questions[0].texts[0]
        assert column(output, "recaption")[0].startswith("a picture of")
        plain = Recaption(**settings(served)).identity()
        assert (Recaption(**settings(served), **given).identity() != plain) == ("label" not in given)


def test_long_descriptions_keep_their_paragraphs_on_one_line() -> None:
    with ChatModel(lambda _: "A door stands open.\n\nBehind it is a cat.") as served:
        output = run(Recaption(**settings(served), form="chat", length="long"), inputs(make_rows(1)), 1)
    assert column(output, "recaption") == ["A door stands open. Behind it is a cat."]


def test_drawn_answers_are_asked_for_again_and_sure_ones_are_not() -> None:
    with ChatModel(lambda _: "I cannot see the picture, sorry.") as served:
        sure = run(Recaption(**settings(served)), inputs(make_rows(1)), 1)
        drawn = run(Recaption(**settings(served), temperature=0.7), inputs(make_rows(1)), 1)
        assert len({question.seed for question in served.questions[1:]}) == 2
    assert column(sure, "recaption_num_tries") == [1]
    assert column(drawn, "recaption_num_tries") == [2]
    assert column(sure, "recaption") == [None]
    assert column(sure, "recaption_refusal") == ["refusal"]


def test_hostile_pictures_are_rows_like_others() -> None:
    rows = hostile_rows()
    with ChatModel(sees) as served:
        output = run(Recaption(**settings(served)), inputs(rows), len(rows))
    assert all(
        (text is None) == (error is not None)
        for text, error in zip(column(output, "recaption"), output.errors, strict=True)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "poem"},
        {"length": "medium"},
        {"num_tries": 0},
        {"domain": "satellite"},
        {"form": "chat", "domain": "moon"},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="recaption"):
        Recaption(model="test", engine="openai", url="http://any/v1", **wrong)


@pytest.mark.parametrize("kind", CAPTIONER_TYPES)
def test_captioners_write_unasked(tmp_path: Path, kind: str) -> None:
    folder = str(make_captioner(tmp_path / "model", kind=kind))
    operator = Recaption(model=folder, cache="none", max_new_tokens=6)
    assert operator.question() == ""
    assert Recaption(model=folder, form="blip").question() == "a photo of"
    output = run(operator, inputs(make_rows(3)), 3)
    assert output.errors[0] is None
    # An untrained captioner says something, or its answer is refused for what it is.
    assert (column(output, "recaption")[0] is None) == bool(column(output, "recaption_refusal")[0])
    assert column(output, "recaption_num_tries") == [1, None, 1]
