"""The rule parser on captions of every kind; precision and recall over the labelled set are in `test_labelled`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.parsing.rules import RuleParser


@pytest.fixture(scope="module")
def parser() -> RuleParser:
    return RuleParser()


@pytest.mark.parametrize(
    ("caption", "complexity", "parse"),
    [
        ("A black cat is chasing a small brown bird", 3, ["cat: black", "bird: small, brown", "chase(cat, bird)"]),
        ("black cat on a sofa", 1, ["cat: black", "sofa"]),
        ("A woman's red dress", 2, ["dress: woman, red"]),
        ("The cat is very black and sleepy", 2, ["cat: black, sleepy"]),
        ("broken window of an old house", 1, ["window: broken", "house: old"]),
        ("a pair of running shoes", 1, ["pair", "shoe: running"]),
        ("Holding hands", 1, ["hand", "hold(hand)"]),
        ("she didn't see the train", 1, ["train", "see(train)"]),
        (
            "Girl wearing a hat sits on the grass reading a book",
            3,
            ["girl", "hat", "grass", "book", "wear(girl, hat)", "sit(girl, grass)", "read(girl, book)"],
        ),
        (
            "a man sits on a bench and reads a newspaper",
            2,
            ["man", "bench", "newspaper", "sit(man, bench)", "read(man, newspaper)"],
        ),
        (
            "A man in a suit and a woman in a dress are dancing",
            1,
            ["man", "suit", "woman", "dress", "dance(man, woman)"],
        ),
        ("the boy has a red ball", 2, ["boy", "ball: red", "have(boy, ball)"]),
        ("the boy has gone", 1, ["boy", "go(boy)"]),
        ("3-piece leather sofa", 2, ["sofa: 3-piece, leather"]),
        ("IMG_2031.jpg", 0, []),
        ("https://example.com/red-dog", 0, []),
        ("artist 's hat", 1, ["hat: artist"]),
        ("", 0, []),
        ("   \t\n", 0, []),
        ("12345", 0, []),
        ("?!...", 0, []),
        ("😀😀😀", 0, []),
    ],
)
def test_captions(parser: RuleParser, caption: str, complexity: int, parse: list[str]) -> None:
    found = parser(caption)
    assert found.describe() == parse
    assert found.complexity() == complexity


def test_titles_are_read_as_if_written_small(parser: RuleParser) -> None:
    assert parser("Black Leather Shoes").describe() == ["shoe: black, leather"]


@pytest.mark.parametrize(
    "caption",
    ["dog " * 25_000, "a" * 100_000, "\u05e9\u05dc\u05d5\u05dd " * 50, "\u202eabc\u202c \x00\x01", "'s 's", "-- - '"],
)
def test_hostile_captions_are_parsed_in_bounded_time(parser: RuleParser, caption: str) -> None:
    assert len(parser(caption).objects) <= 400


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_text(caption: str) -> None:
    parse = _PARSER(caption)
    assert parse.complexity() <= len(parse.attributes) + len(parse.actions)
    for number, _ in parse.attributes:
        assert 0 <= number < len(parse.objects)
    for action in parse.actions:
        assert action.objects
        assert all(0 <= number < len(parse.objects) for number in action.objects)


_PARSER = RuleParser()
