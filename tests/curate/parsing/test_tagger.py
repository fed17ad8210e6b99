"""Where words lie in their caption."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.parsing.tagger import MAX_TOKENS, Tagger, locate, split


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A cat's 3.5-inch tail", ["A", "cat", "'s", "3.5-inch", "tail"]),
        ("www.cats.com cat", ["cat"]),
        ("they don\u2019t sit", ["they", "do", "n't", "sit"]),
        ("", []),
    ],
)
def test_words(caption: str, words: list[str]) -> None:
    assert split(caption) == words
    assert [token.text for token in Tagger().tag(caption)] == words


@pytest.mark.parametrize(
    "unit", ["a", "!?(", "@", "a@", "a-", ".", ".c@", "a.co", "x.jpg", "a@b.", "https://", "1,", "'"]
)
def test_time_does_not_grow_with_the_square_of_the_length(unit: str) -> None:
    caption = unit * (20_000 // len(unit))
    start = time.process_time()
    locate(caption)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "caption", ["write a.b@example.org! now", "see IMG_1.JPG! now", "buy at shop.example.com/x?y, now"]
)
def test_addresses_and_files_are_not_language(caption: str) -> None:
    assert not {"example", "org", "IMG_1", "JPG", "x", "y"} & set(split(caption))
    assert split(caption)[-1] == "now"


def test_places_are_those_of_the_caption() -> None:
    caption = "see www.cat.com: a cat's tail"
    assert [(word, caption[start:end]) for word, start, end in locate(caption)] == [
        ("see", "see"),
        ("a", "a"),
        ("cat", "cat"),
        ("'s", "'s"),
        ("tail", "tail"),
    ]


@given(st.text() | st.text(st.sampled_from("ab \u2019'.-/@w:1\u0130"), max_size=50))
def test_every_word_lies_at_its_place(caption: str) -> None:
    places = locate(caption)
    assert len(places) <= MAX_TOKENS
    end_before = 0
    for word, start, end in places:
        assert end_before <= start < end <= len(caption)
        assert caption[start:end].replace("\u2019", "'").lower() == word.replace("\u2019", "'").lower()
        end_before = end
