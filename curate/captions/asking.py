"""Asks an engine for captions, judges the answers, and asks once more, otherwise, where one is not taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.captions.guards import Verdict
from curate.captions.sentences import split_sentences
from curate.models.engine import LENGTH, Answer, Engine, Request, Sampling, failed
from curate.models.generation import GenerationOperator, prompt_digest, sampling_text

# The request of an attempt, from 0: another seed, other examples.
Build = Callable[[int], Request]
Judge = Callable[[str], Verdict]

_CLOSING_SIGNS = ".!?\u2026\u3002\uff01\uff1f\u061f\u0964\"')"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One caption that is wanted: how it is asked for, and what its answer must be."""

    build: Build
    judge: Judge
    is_prose: bool = True  # whether an answer that was cut is one up to its last whole sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What came of a question: a caption, or the reason why the last answer was not taken, or the engine's error."""

    text: str | None
    refusal: str  # a word that says why; empty where there is a caption, or no answer at all
    num_tries: int
    request: Request
    answer: Answer

    @property
    def error(self) -> str:
        """What the engine said where it gave no answer."""
        return self.answer.error if self.answer.text is None else ""


def ask(engine: Engine, sampling: Sampling, questions: Sequence[Question], tries: int) -> list[Made]:
    """Return what came of every question, in order; those whose answer is not taken are asked up to `tries` times in all.

    One request holds one sample's texts only. What the engine could not answer is not asked again: repeating is the engine's business.
    """
    made: dict[int, Made] = {}
    left = list(range(len(questions)))
    for attempt in range(tries):
        requests = [questions[number].build(attempt) for number in left]
        answers = engine.generate(requests, sampling) if requests else []
        for number, request, answer in zip(left, requests, answers, strict=True):
            made[number] = _take(questions[number], request, answer, attempt + 1)
        left = [number for number in left if made[number].refusal]
    return [made[number] for number in range(len(questions))]


def whole_sentences(text: str) -> str:
    """Return a text that was cut up to its last whole sentence; all of it where it has none."""
    spans = split_sentences(text)
    whole = [span for span in spans if span.of(text)[-1] in _CLOSING_SIGNS]
    # Of the last one only its own end tells that it is whole: "Dr." may be followed by more.
    if spans and spans[-1] not in whole:
        whole = spans[:-1]
    return text[: whole[-1].end] if whole else text


def list_provenance(
    operator: GenerationOperator, prefix: str, rows: Sequence[Sequence[Made]], sampling: Sampling
) -> dict[str, list[Any]]:
    """Return the columns of `list_provenance_fields(prefix)` for several captions a row, in the order of the captions."""
    identity = operator.engine_identity()
    revision = identity.get("weights") or identity.get("revision", "")
    asked = [any(one.answer.text is not None for one in row) for row in rows]
    return {
        f"{prefix}_model": [operator.model_name if is_asked else None for is_asked in asked],
        f"{prefix}_revision": [revision if is_asked else None for is_asked in asked],
        f"{prefix}_sampling": [sampling_text(sampling) if is_asked else None for is_asked in asked],
        f"{prefix}_prompt_digests": [[prompt_digest(one.request) for one in row] for row in rows],
        f"{prefix}_finish_reasons": [[one.answer.finish_reason for one in row] for row in rows],
        f"{prefix}_log_probabilities": [[one.answer.log_probability for one in row] for row in rows],
        f"{prefix}_refusals": [[one.refusal for one in row] for row in rows],
        f"{prefix}_num_tries": [[one.num_tries for one in row] for row in rows],
    }


def list_provenance_fields(prefix: str) -> list[pa.Field]:
    """Return the columns that say where the texts of a list came from; lists are parallel to the texts."""
    return [
        pa.field(f"{prefix}_model", pa.string()),
        pa.field(f"{prefix}_revision", pa.string()),
        pa.field(f"{prefix}_sampling", pa.string()),
        pa.field(f"{prefix}_prompt_digests", pa.list_(pa.string())),
        pa.field(f"{prefix}_finish_reasons", pa.list_(pa.string())),
        pa.field(f"{prefix}_log_probabilities", pa.list_(pa.float32())),
        pa.field(f"{prefix}_refusals", pa.list_(pa.string())),
        pa.field(f"{prefix}_num_tries", pa.list_(pa.int32())),
    ]


def judged_provenance(
    operator: GenerationOperator, prefix: str, rows: Sequence[Made | None]
) -> Mapping[str, Sequence[Any]]:
    """Return `provenance` and the columns of `judged_fields(prefix)` for at most one caption a row; None: the row was not asked."""
    requests = [made.request if made else Request(messages=()) for made in rows]
    answers = [made.answer if made else failed("") for made in rows]
    return {
        **operator.provenance(prefix, requests, answers),
        f"{prefix}_refusal": [made.refusal if made and made.answer.text is not None else None for made in rows],
        f"{prefix}_num_tries": [made.num_tries if made else 0 for made in rows],
    }


def judged_fields(prefix: str) -> list[pa.Field]:
    """Return the columns that say how an answer was judged: why it was not taken (empty where it was), after how many attempts."""
    return [pa.field(f"{prefix}_refusal", pa.string()), pa.field(f"{prefix}_num_tries", pa.int32())]


def _take(question: Question, request: Request, answer: Answer, num_tries: int) -> Made:
    if answer.text is None:
        return Made(text=None, refusal="", num_tries=num_tries, request=request, answer=answer)
    verdict = question.judge(answer.text)
    is_cut = answer.finish_reason == LENGTH and question.is_prose
    text = whole_sentences(verdict.text) if is_cut else verdict.text
    return Made(
        text=None if verdict.reason else text,
        refusal=verdict.reason,
        num_tries=num_tries,
        request=request,
        answer=answer,
    )
