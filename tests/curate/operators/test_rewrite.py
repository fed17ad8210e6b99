"""Rewrites over real HTTP: the protocol, the guards, the second attempt, one request for one sample."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.captions.examples import read_sources
from curate.columns import Input
from curate.operators.rewrite import Rewrite
from schemas.errors import InputError
from tests.chat_model import Asked, ChatModel
from tests.contract import check_operator, column, run
from tests.hostile import captions as hostile_captions

FINGERPRINT = "35fe2b7290148f812801b7a944888acd661bef3a6b23cb314617f3d193919529"
CAPTIONS = ["a brown dog chases a ball in the park", None, " \n", "Anna with 3 boats in Rome, seen from the old bridge"]


def inputs(captions: list[str | None]) -> dict[str, Input]:
    uids = pa.array([f"{row:032x}" for row in range(len(captions))])
    return {"uid": Input.from_column(uids), "alt_text": Input.from_column(pa.array(captions, pa.string()))}


def caption_of(asked: Asked) -> str:
    """Return the caption that a completion is to be written for."""
    return asked.texts[-1].split("\n\n")[-1].removesuffix(" =>")


def good(asked: Asked) -> str:
    """Say the caption otherwise, as a model that continues a text does: with another example after it."""
    return f" this shows {caption_of(asked)}, number\n\na cat => one cat".replace(
        ", number", f" {'now' if asked.seed % 2 else 'here'}"
    )


@contextmanager
def model(answer: Any = good) -> Iterator[tuple[ChatModel, dict[str, Any]]]:
    with ChatModel(answer) as served:
        yield served, {"model": "test", "engine": "openai", "url": served.url, "cache": "none"}


def test_contract() -> None:
    with model() as (_, settings):
        output = check_operator(
            Rewrite(**settings),
            fingerprint=FINGERPRINT,
            pinned=Rewrite(model="test", engine="openai", url="http://any/v1"),
            inputs=inputs(CAPTIONS),
        )
    assert output.errors == [None, "no alt_text", "blank caption", None]
    assert column(output, "rewrite_sources")[0] == ["polished", "vivid", "human", "coco"]
    texts = column(output, "rewrite")
    assert [len(found) if found is not None else None for found in texts] == [4, None, 0, 4]
    assert all(re.fullmatch(r"this shows a brown dog chases a ball in the park (now|here)", text) for text in texts[0])
    assert column(output, "rewrite_refusals")[0] == [""] * 4
    assert column(output, "rewrite_num_tries")[3] == [1] * 4
    assert column(output, "rewrite_model")[0] == "test"
    assert len(set(column(output, "rewrite_prompt_digests")[0])) == 4
    assert json.loads(column(output, "rewrite_sampling")[0]) == {
        "max_new_tokens": 77,
        "stop": ["\n"],
        "temperature": 0.9,
        "top_k": 0,
        "top_p": 0.95,
    }


def test_the_protocol_is_three_examples_of_the_source_and_the_caption() -> None:
    with model() as (served, settings):
        run(Rewrite(**settings), inputs(CAPTIONS[:1] * 5), 5)
        asked = list(served.questions)
    pairs = {source.name: {*source.pairs} for source in read_sources()}
    groups = [set(group) for group in read_sources()[3].groups]
    drawn = set()
    for question in asked:
        assert [role for role, _ in question.turns] == ["user"]
        instruction, *examples, last = question.texts[0].split("\n\n")
        assert instruction.endswith(":")
        assert last == f"{CAPTIONS[0]} =>"
        assert len(examples) == 3
        shown = [tuple(example.split(" => ")) for example in examples]
        assert any(set(shown) <= pairs[name] for name in pairs) or all(
            any(set(pair) <= group for group in groups) for pair in shown
        )
        drawn.add(tuple(shown))
    assert len(asked) == len(drawn) == len({question.seed for question in asked}) == 20


def test_chat_models_get_turns() -> None:
    with model(lambda asked: f'Sure! Here is the caption: "{asked.texts[-1].split(chr(34))[1]} again"') as (
        served,
        settings,
    ):
        output = run(Rewrite(**settings, form="chat"), inputs(CAPTIONS[:1]), 1)
        turns = served.questions[0].turns
    assert [role for role, _ in turns] == ["user", "assistant"] * 3 + ["user"]
    assert column(output, "rewrite")[0] == ["a brown dog chases a ball in the park again"] * 4


def test_what_is_refused_is_asked_for_once_more_with_other_examples() -> None:
    seen: dict[str, int] = {}

    def answer(asked: Asked) -> str:
        caption = caption_of(asked)
        seen[caption] = seen.get(caption, 0) + 1
        return "I'm sorry, but I cannot do that." if seen[caption] <= 4 else f"{caption} once more"

    with model(answer) as (served, settings):
        output = run(Rewrite(**settings), inputs(CAPTIONS[:1]), 1)
        prompts = {question.texts[0] for question in served.questions}
        seeds = {question.seed for question in served.questions}
    assert len(prompts) == len(seeds) == 8
    assert column(output, "rewrite")[0] == ["a brown dog chases a ball in the park once more"] * 4
    assert column(output, "rewrite_num_tries")[0] == [2] * 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot help with that.", "refusal"),
        ("", "empty"),
        ("boats", "too_short"),
        ("Anna with 4 boats in Rome", "numbers"),
        ("Anna with 3 boats seen from a bridge in Italy", "names"),
        (CAPTIONS[3] or "", "copy"),
        ("boats " * 9, "repetition"),
    ],
)
def test_what_stays_refused_is_null_with_its_reason(answer: str, reason: str) -> None:
    with model(lambda _: answer) as (_, settings):
        output = run(Rewrite(**settings), inputs(CAPTIONS[3:]), 1)
    assert column(output, "rewrite") == [[None] * 4]
    assert column(output, "rewrite_refusals") == [[reason] * 4]
    assert column(output, "rewrite_num_tries") == [[2] * 4]
    assert output.errors == [None]


def test_what_the_engine_could_not_answer_is_the_rows_error() -> None:
    with model(lambda asked: None if "Rome" in caption_of(asked) else good(asked)) as (_, settings):
        output = run(Rewrite(**settings), inputs(CAPTIONS), 4)
    assert output.errors[0] is None
    assert "told to fail" in str(output.errors[3])
    assert column(output, "rewrite")[3] == [None] * 4
    assert column(output, "rewrite_model")[3] is None


def test_examples_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"own": {"pairs": [["a cat", "one cat"], ["a dog", "one dog"]]}}))
    with model() as (served, settings):
        operator = Rewrite(**settings, examples=str(path), num_examples=2)
        output = run(operator, inputs(CAPTIONS[:1]), 1)
        assert "a cat => one cat" in served.questions[0].texts[0]
        assert operator.identity() != Rewrite(**settings, num_examples=2).identity()
        moved = tmp_path / "moved.json"
        moved.write_text(path.read_text())
        assert Rewrite(**settings, examples=str(moved), num_examples=2).identity() == operator.identity()
        with pytest.raises(InputError, match="num_examples is 3; source 'own' has 2"):
            Rewrite(**settings, examples=str(path))
    assert column(output, "rewrite_sources") == [["own"]]
    assert len(column(output, "rewrite")[0]) == 1


@pytest.mark.parametrize("settings", [{"form": "poem"}, {"num_tries": 0}, {"num_examples": -1}, {"max_characters": 0}])
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="rewrite"):
        Rewrite(model="test", engine="openai", url="http://any/v1", **settings)


def test_hostile_captions_are_rows_like_others() -> None:
    hostile = list(hostile_captions().values())
    with model() as (served, settings):
        output = run(Rewrite(**settings), inputs(hostile), len(hostile))
        asked = list(served.questions)
    assert all(len(question.texts[0]) < 3_000 and question.texts[0].count("=>") == 4 for question in asked)
    for texts, error in zip(column(output, "rewrite"), output.errors, strict=True):
        assert error in ("no alt_text", "blank caption") or len(texts) == 4
    assert column(output, "rewrite")[-1][0] is not None
