from collections import Counter

import pytest

from pipelines.perturb import ORDERS, Perturber

CAPTION = "a black dog chases a small cat over the wet grass"


@pytest.fixture(scope="module")
def perturber() -> Perturber:
    return Perturber()


def test_each_kind_says_something_else_in_the_same_words(perturber: Perturber) -> None:
    found = perturber(CAPTION)
    assert set(found) == {"attribution", "relation", *ORDERS}
    for texts in found.values():
        (text,) = texts
        assert text != CAPTION
        assert Counter(text.split()) == Counter(CAPTION.split())
    adjectives = [word for word in found["attribution"][0].split() if word in {"black", "small", "wet"}]
    assert adjectives != ["black", "small", "wet"]
    others = [word for word in found["attribution"][0].split() if word not in {"black", "small", "wet"}]
    assert others == [word for word in CAPTION.split() if word not in {"black", "small", "wet"}]


def test_orders_move_what_they_say(perturber: Perturber) -> None:
    found = {kind: texts[0].split() for kind, texts in perturber(CAPTION).items()}
    words = CAPTION.split()
    content = {"black", "dog", "small", "cat", "wet", "grass"}
    assert [w for w in found["order_content"] if w not in content] == [w for w in words if w not in content]
    assert [w for w in found["order_rest"] if w in content] == [w for w in words if w in content]
    for start in range(0, len(words), 3):
        assert sorted(found["order_within_trigrams"][start : start + 3]) == sorted(words[start : start + 3])
    kept = [" ".join(words[start : start + 3]) for start in range(0, len(words), 3)]
    assert all(group in " ".join(found["order_trigrams"]) for group in kept)


def test_signs_and_spaces_stay_where_they_are(perturber: Perturber) -> None:
    caption = "The dog's ball,  (red) and round, lies on the wet grass."
    for kind in ORDERS:
        (text,) = perturber(caption)[kind]
        assert text.endswith(".")
        assert [sign for sign in text if not sign.isalnum()] == [sign for sign in caption if not sign.isalnum()]
        assert Counter(filter(str.isalnum, text)) == Counter(filter(str.isalnum, caption))


def test_the_same_caption_gives_the_same(perturber: Perturber) -> None:
    assert perturber(CAPTION) == Perturber()(CAPTION)
    assert perturber("a cat")["order_all"] == ["cat a"]


@pytest.mark.parametrize("caption", ["", "cat", "dog dog dog", "\u732b", "!!! ???"])
def test_a_caption_without_an_order_has_no_wrong_one(perturber: Perturber, caption: str) -> None:
    for texts in perturber(caption).values():
        assert texts
        assert caption not in texts
    assert perturber("cat") == {}
    assert perturber("dog dog dog") == {}
