"""Prompt injection: the table of attacks, and every operator that shows a model what the web says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.models.generation import GenerationOperator
from curate.operators.complete import Complete
from curate.operators.fuse import Fuse
from curate.operators.negatives_llm import NegativesLlm
from curate.operators.rewrite import Rewrite
from tests.chat_model import Asked, ChatModel
from tests.contract import picture_input, run
from tests.injection import OBEYED, attacks, obey, plainly_framed, secrets, table
from tests.language_model import WORDS, make_language_model

DOCUMENT = Path(__file__).parents[3] / "docs/prompt-injection.md"
TEXTS = list(attacks().values())
NUM_ROWS = 2 * len(TEXTS)


def test_no_attack_gets_out_of_our_frames_and_most_get_out_of_plain_ones() -> None:
    results = [line.strip("| ").split(" | ")[1:] for line in table()[2:]]
    assert all(ours == ["held", "held"] for ours in (result[2:] for result in results))
    for column in (0, 1):
        assert sum(result[column] == "obeyed" for result in results) > len(results) / 2
    # Not even the plainest order is obeyed for being there: the model can tell inside from outside.
    assert results[0] == ["held"] * 4
    assert obey(Asked((("user", plainly_framed("a dog", "chat")[0].text),), b"", 0)) == "a dog in other words"


def test_the_document_has_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "\n".join(table()) in text


def rows() -> list[str]:
    """Return attacks and victims in turn, every one with a word of its own."""
    own = secrets(NUM_ROWS)
    return [
        f"{own[row]} {TEXTS[row // 2]} {own[row]}" if row % 2 else f"a {own[row]} seen from the window"
        for row in range(NUM_ROWS)
    ]


def column_of(texts: Sequence[Any], kind: pa.DataType | None = None) -> Input:
    return Input.from_column(pa.array(texts, kind or pa.string()))


def inputs(operator: GenerationOperator) -> dict[str, Input]:
    texts = rows()
    made = {
        "uid": column_of([f"{row:032x}" for row in range(NUM_ROWS)]),
        "alt_text": column_of(texts),
        "recaption": column_of([f"a thing {row}" for row in range(NUM_ROWS)]),
        "tags": column_of([[text, "window"] for text in texts], pa.list_(pa.string())),
        "concepts": column_of([[text] for text in texts], pa.list_(pa.string())),
        "noise_probability": column_of([1.0] * NUM_ROWS, pa.float64()),
        "image": picture_input([np.full((8, 8, 3), row, np.uint8) for row in range(NUM_ROWS)]),
    }
    return {name: made[name] for name in operator.reads}


@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: Rewrite(**settings),
        lambda **settings: Rewrite(**settings, form="chat"),
        lambda **settings: Fuse(**settings),
        lambda **settings: Fuse(**settings, parts="recaption tags"),  # the attack is what was read in the picture
        lambda **settings: NegativesLlm(**settings),
        lambda **settings: Complete(**settings),
    ],
    ids=["rewrite", "rewrite chat", "fuse", "fuse text in pictures", "negatives_llm", "complete"],
)
def test_operators_give_no_row_another_rows_text_and_obey_none(make: Callable[..., GenerationOperator]) -> None:
    answers: list[str] = []

    def answer(asked: Asked) -> str:
        answers.append(obey(asked))
        return answers[-1]

    with ChatModel(answer) as served:
        operator = make(model="test", engine="openai", url=served.url, cache="none", num_tries=1)
        output = run(operator, inputs(operator), NUM_ROWS)
        questions = list(served.questions)
    assert len(answers) >= NUM_ROWS
    assert [text for text in answers if OBEYED in text] == []
    own = secrets(NUM_ROWS)
    for question in questions:
        asked = " ".join(question.texts)
        assert sum(word in asked for word in own.values()) == 1
        assert len(asked) < 6_000
    for row in range(NUM_ROWS):
        said = str([values[row].as_py() for values in output.columns.values()])
        assert OBEYED not in said
        assert not any(word in said for other, word in own.items() if other != row)


@pytest.mark.parametrize("form", ["completion", "chat"])
def test_a_local_model_says_the_same_of_a_row_whatever_stands_beside_it(tmp_path: Path, form: str) -> None:
    folder = make_language_model(tmp_path / "model", context=2048, has_template=form == "chat")
    texts = [f"{text} {WORDS[number]}" for number, text in enumerate(TEXTS)]
    victims = [f"{WORDS[number]} {WORDS[-1 - number]}" for number in range(len(TEXTS))]
    mixed = [text for pair in zip(victims, texts, strict=True) for text in pair]
    operator = Rewrite(model=str(folder), form=form, cache="none", num_tries=1, max_new_tokens=8)

    def inputs_of(captions: Sequence[str], step: int) -> dict[str, Input]:
        uids = [f"{row * step:032x}" for row in range(len(captions))]
        return {"uid": column_of(uids), "alt_text": column_of(captions)}

    alone = run(operator, inputs_of(victims, 2), len(victims))
    beside = run(operator, inputs_of(mixed, 1), len(mixed))
    assert beside.errors == [None] * len(mixed)
    for name in ("rewrite", "rewrite_refusals", "rewrite_prompt_digests", "rewrite_finish_reasons"):
        assert alone.columns[name].to_pylist() == beside.columns[name].to_pylist()[::2]
    likelihoods = (found.columns["rewrite_log_probabilities"].to_pylist() for found in (alone, beside))
    for mine, other in zip(next(likelihoods), next(likelihoods)[::2], strict=True):
        assert mine == pytest.approx(other, abs=1e-3)
