"""Only noisy rows get another caption, of their own picture."""

from typing import Any

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.complete import Complete
from schemas.errors import InputError
from tests.chat_model import Asked, ChatModel
from tests.contract import check_operator, column, make_inputs, run
from tests.pool import FAILED_ROWS, make_rows

FINGERPRINT = "1d84d9ccf44a67ea158a37b8ce1364287ba9d5c8dda9c3cd05dda263ea808ca7"
NOISE = [0.9, 0.9, None, 0.9, 0.9, 0.5, 0.51, 1.0]
CONCEPTS = [["red", "circle"], None, ["x"], ["x"], ["x"], ["x"], [], ["a\nb", None, ""]]


class _Image:
    """Stands for an operator of some inputs."""

    reads = ("image", "alt_text")


def inputs(**other: Any) -> dict[str, Input]:
    uids = pa.array([f"{row:032x}" for row in range(8)])
    columns = {
        "noise_probability": pa.array(other.get("noise", NOISE), pa.float64()),
        "concepts": pa.array(other.get("concepts", CONCEPTS), other.get("kind", pa.list_(pa.string()))),
    }
    made = make_inputs(_Image(), make_rows(8))  # type: ignore[arg-type]
    return {"uid": Input.from_column(uids), **made} | {
        name: Input.from_column(values) for name, values in columns.items()
    }


def settings(served: ChatModel) -> dict[str, Any]:
    return {"model": "test", "engine": "openai", "url": served.url, "cache": "none"}


def sees(asked: Asked) -> str:
    words = asked.texts[0].split('"')[1] if '"' in asked.texts[0] else "nothing"
    return f"seen with {words} in {len(asked.image)} bytes"


def test_contract() -> None:
    with ChatModel(sees) as served:
        output = check_operator(
            Complete(**settings(served)),
            fingerprint=FINGERPRINT,
            pinned=Complete(model="test", engine="openai", url="http://any/v1"),
            inputs=inputs(),
        )
        asked = {question.texts[0] for question in served.questions}
        pictures = {question.image for question in served.questions}
    alt_texts = [row.caption for row in make_rows(8)]
    texts = column(output, "completed_caption")
    assert FAILED_ROWS == (1, 3)
    assert column(output, "is_completed") == [True, None, False, None, None, False, True, True]
    assert texts[2] == alt_texts[2]
    assert texts[5] == alt_texts[5]
    assert texts[0].startswith("seen with red, circle in ")
    assert texts[6].startswith("seen with nothing in ")
    assert texts[7].startswith("seen with a b in ")
    # Nobody else was asked about; one picture is a copy of another.
    assert len(asked) == 3
    assert len(pictures) == 2
    assert column(output, "completed_caption_refusal") == ["", None, None, None, None, None, "", ""]


def test_low_numbers_may_tell_noise_and_concepts_may_be_absent() -> None:
    with ChatModel(sees) as served:
        operator = Complete(**settings(served), below=True, threshold=0.5, with_concepts=False)
        assert "concepts" not in operator.reads
        rows = {name: found for name, found in inputs().items() if name != "concepts"}
        output = run(operator, rows, 8)
    assert column(output, "is_completed") == [False, None, False, None, None, True, False, False]
    assert column(output, "completed_caption")[5].startswith("seen with nothing in ")


def test_concepts_may_be_a_text() -> None:
    with ChatModel(sees) as served:
        output = run(Complete(**settings(served)), inputs(concepts=['a "dog"'] * 8, kind=pa.string()), 8)
    assert column(output, "completed_caption")[0].startswith("seen with a 'dog' in ")


def test_what_is_refused_is_null_and_says_why() -> None:
    with ChatModel(lambda _: "I'm sorry, I cannot see it.") as served:
        output = run(Complete(**settings(served)), inputs(), 8)
    assert column(output, "completed_caption")[0] is None
    assert column(output, "completed_caption_refusal")[0] == "refusal"
    with pytest.raises(InputError, match="num_tries is 0"):
        Complete(model="test", engine="openai", url="http://any/v1", num_tries=0)
