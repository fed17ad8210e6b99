"""Answers: what is stripped of them, what is refused and why."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.captions.examples import read_sources
from curate.captions.guards import (
    REASONS,
    Rules,
    find_names,
    find_numbers,
    is_repetitive,
    judge,
    same_language,
    strip_chatter,
)
from pipelines.demo.captions import caption
from pipelines.demo.scenes import make_scene
from pipelines.demo.translation import LANGUAGES, translate


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A cat on a mat.", "A cat on a mat."),
        ("  \n\nA cat on a mat.\n\na dog => one dog", "A cat on a mat."),
        ("A cat on a mat. => A cat", "A cat on a mat."),
        (
            'Sure! Here is the rewritten caption:\n\n"A cat on a mat."\n\nLet me know if you need more!',
            "A cat on a mat.",
        ),
        ("Sure, here's a rewritten caption: A cat on a mat.", "A cat on a mat."),
        ("Rewritten caption: A cat on a mat.", "A cat on a mat."),
        ("Caption 1: 'A cat on a mat'", "A cat on a mat"),
        ("1. A cat on a mat.\n2. A dog.", "A cat on a mat."),
        ("- **A cat on a mat.**", "A cat on a mat."),
        ("A cat on a mat.</s>", "A cat on a mat."),
        ("A cat on a mat. I hope this helps!", "A cat on a mat."),
        ("```\nA cat on a mat.\n```", "A cat on a mat."),
        ("A description of a ship", "A description of a ship"),
        ("Caption:", "Caption:"),
        ("\u201cA cat\u201d and \u201ca dog\u201d", "\u201cA cat\u201d and \u201ca dog\u201d"),
        ('"A cat that was cut', "A cat that was cut"),
        ('A sign that says "Stop"', 'A sign that says "Stop"'),
        ("the house of the boys'", "the house of the boys'"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_what_is_stripped(answer: str, caption: str) -> None:
    assert strip_chatter(answer) == caption


SOURCE = "A photo of Anna and Bob with 3 dogs near the old mill"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Near the old mill, Anna and Bob stand beside three dogs.", ""),
        ("", "empty"),
        ("!!!", "empty"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("As an AI language model, I see Anna, Bob and 3 dogs.", "refusal"),
        ("Please provide the image of Anna.", "refusal"),
        ("Mill.", "too_short"),
        ("mill " + "and dogs or cats with birds near " * 20, "too_long"),
        ("dogs dogs dogs dogs dogs", "repetition"),
        ("the old mill the old mill the old mill the old mill", "repetition"),
        ("Write the following image captions in other words, Anna and Bob", "prompt"),
        ("a photo of anna and bob with 3 dogs near the old mill!", "copy"),
        ("Anna und Bob stehen mit ihren 3 Hunden neben der alten M\u00fchle am Fluss", "language"),
        ("\u0410\u043d\u043d\u0430 \u0438 \u0411\u043e\u0431", "language"),
        ("Anna and Bob with dogs near the mill", "numbers"),
        ("Anna and Bob with 3 dogs near the mill in 1998", "numbers"),
        ("Anna with 3 dogs near the old mill", "names"),
    ],
)
def test_why_an_answer_is_refused(answer: str, reason: str) -> None:
    ours = ["Write the following image captions in other words, one after the other."]
    assert judge(answer, SOURCE, Rules(), prompt=ours).reason == reason


def test_rules_can_be_lifted() -> None:
    free = Rules(keep_names=False, keep_numbers=False, may_copy=True, needs_source=False)
    assert judge("Anna with dogs", SOURCE, free).reason == ""
    assert judge(SOURCE, SOURCE, free).reason == ""
    assert judge("Ein Zug steht am Bahnhof der kleinen Stadt", SOURCE, free).reason == ""
    assert judge("two words", SOURCE, Rules(min_words=3)).reason == "too_short"


def test_an_answer_about_something_else_is_refused() -> None:
    source = "black cat on a sofa"
    assert judge("Transfer the money to this account", source, Rules()).reason == "unrelated"
    assert judge("Two cats in a room", source, Rules(keep_numbers=False)).reason == ""
    assert judge("A cat that is black", source, Rules()).reason == ""
    assert judge("a black dog", "\u9ed1\u732b", Rules()).reason == "language"


def test_the_prompt_may_be_repeated_where_the_caption_has_it() -> None:
    caption = "my house and my garden in the early summer morning light"
    rules = Rules(may_copy=True)
    assert judge(caption, caption, rules, prompt=[caption]).reason == ""
    assert judge(caption, "my house", rules, prompt=[caption]).reason == "prompt"


@pytest.mark.parametrize(
    ("text", "names", "numbers"),
    [
        ("the tower in Paris at night", ["Paris"], set()),
        ("Red Leather Wallet For Men", [], set()),
        ("Sunset. Boats in the bay", [], set()),
        ("two cats, 2 dogs and 1,200 birds", [], {"2", "1200"}),
        ("a pair of birds and a dozen eggs", [], {"2", "12"}),
        ("one cat", [], set()),
        ("Anna Smith sits on a bench", ["Anna", "Smith"], set()),
        ("", [], set()),
    ],
)
def test_names_and_numbers(text: str, names: list[str], numbers: set[str]) -> None:
    assert find_names(text) == names
    assert find_numbers(text) == numbers


def test_repetition_is_more_than_a_phrase_said_twice() -> None:
    assert not is_repetitive(["a", "big", "cat", "and", "a", "big", "dog", "and", "a", "big", "bird"])
    assert is_repetitive(["very", "very", "very", "very", "big"])
    assert not is_repetitive([])


def test_short_or_mixed_texts_are_given_the_benefit_of_the_doubt() -> None:
    assert same_language("2024", "a dog")
    assert same_language("Hund im Garten", "dog in garden")
    assert not same_language("\u0441\u043e\u0431\u0430\u043a\u0430", "dog")


@given(st.text(), st.text())
def test_any_answer_is_judged(answer: str, source: str) -> None:
    verdict = judge(answer, source, Rules(), prompt=["Write it in other words please."])
    assert verdict.reason in ("", *REASONS)
    assert "\n" not in verdict.text
    assert ("" if verdict.text else "empty") in (verdict.reason, "")


def test_most_of_our_own_examples_are_taken() -> None:
    for source in read_sources():
        pairs = [*source.pairs, *(pair for group in source.groups for pair in itertools.permutations(group, 2))]
        reasons = Counter(judge(wanted, given, Rules()).reason for given, wanted in pairs)
        assert reasons[""] >= 0.9 * len(pairs)
        # English is never taken for another language.
        assert reasons["language"] == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_most_answers_in_another_language_are_found(language: str) -> None:
    scenes = [make_scene(number) for number in range(100)]
    found = [
        judge(translate(scene, language, 0), caption(scene, 0), Rules(keep_numbers=False)).reason for scene in scenes
    ]
    assert found.count("language") >= 85


def test_a_huge_answer_is_judged_soon() -> None:
    assert judge("a cat " * 100_000, "a cat", Rules()).reason == "too_long"
    assert judge("Sure " * 100_000, "a cat", Rules()).reason == "too_long"
