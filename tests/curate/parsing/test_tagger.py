"""Where words lie in their caption."""

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
