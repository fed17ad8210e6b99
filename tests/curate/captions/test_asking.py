"""Attempts: who is asked again, with what, and what is said of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from curate.captions.asking import Question, ask, whole_sentences
from curate.captions.guards import Verdict
from curate.models.engine import LENGTH, STOP, Answer, Engine, Message, Request, Sampling, failed


class Parrot(Engine):
    """Says a request's text, and fails where it says so."""

    def __init__(self, finish_reason: str = STOP) -> None:
        self.batches: list[list[str]] = []
        self._finish_reason = finish_reason

    def identity(self) -> Mapping[str, Any]:
        return {"engine": "parrot"}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        texts = [request.messages[0].text for request in requests]
        self.batches.append(texts)
        return [
            failed("the line is dead") if "fail" in text else Answer(text=text, finish_reason=self._finish_reason)
            for text in texts
        ]


def question(name: str, good_attempt: int) -> Question:
    def build(attempt: int) -> Request:
        return Request(messages=(Message(role="user", text=f"{name} {attempt}"),), seed=attempt)

    def judge(answer: str) -> Verdict:
        return Verdict(answer, "" if int(answer.split()[-1]) >= good_attempt else "too_short")

    return Question(build=build, judge=judge)


def test_only_what_was_refused_is_asked_again() -> None:
    engine = Parrot()
    made = ask(engine, Sampling(), [question("a", 0), question("b", 1), question("fail", 0), question("c", 9)], 3)
    assert engine.batches == [["a 0", "b 0", "fail 0", "c 0"], ["b 1", "c 1"], ["c 2"]]
    assert [one.text for one in made] == ["a 0", "b 1", None, None]
    assert [one.refusal for one in made] == ["", "", "", "too_short"]
    assert [one.num_tries for one in made] == [1, 2, 1, 3]
    assert [one.error for one in made] == ["", "", "the line is dead", ""]
    assert made[1].request.seed == 1


def test_nothing_is_asked_for_nothing() -> None:
    engine = Parrot()
    assert ask(engine, Sampling(), [], 2) == []
    assert engine.batches == []


@pytest.fixture
def cut() -> Iterator[Parrot]:
    yield Parrot(LENGTH)


def test_an_answer_that_was_cut_ends_with_its_last_whole_sentence(cut: Parrot) -> None:
    build = question("A dog runs. A cat", 0).build
    whole = Question(build=build, judge=lambda answer: Verdict(answer, ""))
    as_it_is = Question(build=build, judge=lambda answer: Verdict(answer, ""), is_prose=False)
    assert [one.text for one in ask(cut, Sampling(), [whole, as_it_is], 1)] == ["A dog runs.", "A dog runs. A cat 0"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A dog. A c", "A dog."),
        ("a dog and a c", "a dog and a c"),
        ("", ""),
        (".", "."),
        ("Dr. Smith in a ca", "Dr. Smith in a ca"),
        ("It is 3.5 m long. Dr. Smith in a ca", "It is 3.5 m long."),
        ("A dog runs. A cat sleeps.", "A dog runs. A cat sleeps."),
        ("\u732b\u3002\u72d7", "\u732b\u3002"),
    ],
)
def test_whole_sentences(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept
