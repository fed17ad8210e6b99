from collections import Counter

import pytest

from schemas.errors import InputError
from train.draws import TextDraw, augment_text
from train.request import Text

COLUMNS = ("alt_text", "rewrite", "recaption")
CAPTIONS = ["a dog", ["one", " two ", None, "", "three"], None]


def draw(text: Text, seed: int = 0) -> list[str]:
    return TextDraw.resolve(text, COLUMNS).draw(CAPTIONS, "drawn text", seed, 1)


def test_the_drawn_text_is_passed_on() -> None:
    assert draw(Text()) == ["drawn text"]
    assert draw(Text(variant="masked")) == ["drawn text"]  # its tokens are masked later


def test_a_missing_caption_is_empty() -> None:
    assert draw(Text(columns=("recaption",))) == [""]
    assert draw(Text(columns=("alt_text",))) == ["a dog"]


def test_several_are_drawn_without_replacement_and_evenly() -> None:
    first = Counter()
    for seed in range(3000):
        found = draw(Text(columns=("rewrite", "alt_text"), count=3), seed)
        assert len(set(found)) == 3
        first[found[0]] += 1
    assert set(first) == {"one", "two", "three", "a dog"}
    assert min(first.values()) > 650
    assert draw(Text(columns=("rewrite",), count=5))[3:] == ["", ""]


def test_a_draw_depends_on_its_seed_alone() -> None:
    text = Text(columns=("rewrite",))
    assert [draw(text, seed) for seed in range(20)] == [draw(text, seed) for seed in range(20)]
    assert len({draw(text, seed)[0] for seed in range(20)}) == 3


def test_augmented_texts_have_words_swapped_or_left_out() -> None:
    from random import Random

    words = ["a", "small", "red", "dog", "sleeps", "on", "the", "old", "green", "sofa"]
    found = [augment_text(" ".join(words), Random(seed)).split() for seed in range(400)]
    swapped = [text for text in found if sorted(text) == sorted(words)]
    shortened = [text for text in found if len(text) < len(words)]
    assert sum(text != words for text in swapped) > 150
    assert all(sum(a != b for a, b in zip(text, words, strict=True)) <= 2 for text in swapped)
    assert 80 < len(shortened) < 200
    assert all(set(text) <= set(words) for text in found)
    assert augment_text("dog", Random(0)) == "dog"
    assert augment_text("", Random(0)) == ""
    assert all(augment_text("a b", Random(seed)) for seed in range(300))
    assert draw(Text(variant="augmented")) in (["drawn text"], ["text drawn"], ["drawn"], ["text"])


def test_columns_must_have_been_opened() -> None:
    with pytest.raises(InputError, match="caption column 'story' is not read; the dataset was opened with alt_text"):
        TextDraw.resolve(Text(columns=("story",)), COLUMNS)
