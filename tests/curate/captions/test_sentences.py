"""Where sentences end, and where they only seem to."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.captions.sentences import Span, merge_spans, split_sentences


def cut(text: str) -> list[str]:
    return [span.of(text) for span in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog runs. A cat sleeps.", ["A dog runs.", "A cat sleeps."]),
        ("A dog runs", ["A dog runs"]),
        ("It is 3.5 m long. It weighs 1,200.75 kg.", ["It is 3.5 m long.", "It weighs 1,200.75 kg."]),
        (
            "Dr. Smith meets Mr. J. K. Jones in St. Louis. They talk.",
            ["Dr. Smith meets Mr. J. K. Jones in St. Louis.", "They talk."],
        ),
        ("Shot at 5 p.m. in the U.S. Army museum.", ["Shot at 5 p.m. in the U.S. Army museum."]),
        ("Cats, dogs, etc. The sky is blue.", ["Cats, dogs, etc.", "The sky is blue."]),
        ("Chairs by Vitra Inc. of Basel", ["Chairs by Vitra Inc. of Basel"]),
        (
            "Fig. 3 shows a hut. No. 7 is red. He says no. A dog barks.",
            ["Fig. 3 shows a hut.", "No. 7 is red.", "He says no.", "A dog barks."],
        ),
        (
            "See www.example.org/a.html for more! Is it red? Yes.",
            ["See www.example.org/a.html for more!", "Is it red?", "Yes."],
        ),
        ("A dog ... and a cat. Wait... What?", ["A dog ... and a cat.", "Wait...", "What?"]),
        ('A sign says "Stop." A man waits.', ['A sign says "Stop."', "A man waits."]),
        ("one line\ntwo lines\r\n\r\nthree</s>", ["one line", "two lines", "three"]),
        ("- a red door\n- a blue door\n1. a step\n2) a stair", ["a red door", "a blue door", "a step", "a stair"]),
        ("1. A door. 2. A step.", ["A door.", "A step."]),
        ("\u4e00\u53ea\u732b\u3002\u4e00\u53ea\u72d7\uff01", ["\u4e00\u53ea\u732b\u3002", "\u4e00\u53ea\u72d7\uff01"]),
        (
            "\u0647\u0644 \u0647\u0630\u0627 \u0643\u0644\u0628\u061f \u0646\u0639\u0645",
            ["\u0647\u0644 \u0647\u0630\u0627 \u0643\u0644\u0628\u061f", "\u0646\u0639\u0645"],
        ),
        ("It is I. We go.", ["It is I.", "We go."]),
        ("the iPhone. it rings", ["the iPhone. it rings"]),
        ("... !!! \u2026 \U0001f600", []),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert cut(text) == sentences


@given(st.text(st.sampled_from('aB1 .!?\n-)"\u3002\u202e\U0001f600\u0301</s>'), max_size=60) | st.text())
def test_sentences_are_in_order_apart_and_hold_every_letter(text: str) -> None:
    spans = split_sentences(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(first.end <= second.start for first, second in itertools.pairwise(spans))
    assert all(span.of(text) == span.of(text).strip() for span in spans)
    assert all(any(map(str.isalnum, span.of(text))) for span in spans)


def test_runs_of_sentences_are_pieces_of_the_text() -> None:
    text = "One dog. Two cats.  Three birds."
    spans = split_sentences(text)
    assert [span.of(text) for span in merge_spans(spans, 2)] == ["One dog. Two cats.", "Three birds."]
    assert merge_spans(spans, 1) == spans
    assert merge_spans(spans, 9) == [Span(0, len(text))]
    assert merge_spans([], 2) == []


@pytest.mark.parametrize("piece", ["a. ", ".", ".)", "a" * 99 + ".", "1. ", "\n", "St. "])
def test_time_grows_with_the_length_only(piece: str) -> None:
    started = time.perf_counter()
    split_sentences(piece * (400_000 // len(piece)))
    assert time.perf_counter() - started < 5
