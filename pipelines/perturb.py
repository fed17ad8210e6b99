"""Wrong captions made of right ones, to see whether a model reads more than a bag of words: attribution, relation and order.

After ARO (Yuksekgonul et al., 2023): attributes change places between objects; objects change places in a relation; and the words are put in
another order in five ways. Everything is a function of the caption alone.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

from curate.captions.swaps import Swapper
from curate.parsing.tagger import Tagger, Token, locate

ATTRIBUTION = "attribution"
RELATION = "relation"
# The unit of the language's parser that changes places.
_SWAPS = {ATTRIBUTION: "adjective", RELATION: "noun_phrase"}
_CONTENT_TAGS = ("NN", "NP", "AJ")
_GROUP = 3

_Shuffle = Callable[[Sequence[str], Sequence[bool], random.Random], list[str]]


class Perturber:
    """Makes the wrong captions of a caption, about 600 captions per second; English."""

    def __init__(self) -> None:
        self._swapper = Swapper()
        self._tagger = Tagger()

    def __call__(self, caption: str) -> dict[str, list[str]]:
        """Return by kind the wrong captions there are of it; a kind of which it has none is left out.

        The kinds are `attribution`, `relation` and the five orders of `ORDERS`.
        """
        found: dict[str, list[str]] = {}
        for kind, unit in _SWAPS.items():
            swaps = self._swapper.swap(caption, [unit], 1, kind)
            if swaps:
                found[kind] = [swaps[0].text]
        words = [word for word, _, _ in locate(caption)]
        is_content = [_is_content(token) for token in self._tagger.tag(caption)]
        before = [word.casefold() for word in words]
        for kind, shuffle in ORDERS.items():
            draws = random.Random(hashlib.sha256(f"{kind} {caption}".encode()).digest())
            text = _first_different(lambda: shuffle(words, is_content, draws), before)  # noqa: B023  called at once
            if text:
                found[kind] = [text]
        return found


def _is_content(token: Token) -> bool:
    return token.tag.startswith(_CONTENT_TAGS) and token.text[0].isalpha()


def _first_different(shuffle: Callable[[], list[str]], before: Sequence[str]) -> str:
    """Return the first of a few orders that is another than it was, or "" where there is none."""
    for _ in range(8):
        words = shuffle()
        if [word.casefold() for word in words] != before:
            return " ".join(words)
    return ""


def _shuffle_where(words: Sequence[str], is_moved: Sequence[bool], draws: random.Random) -> list[str]:
    moved = [word for word, moves in zip(words, is_moved, strict=True) if moves]
    draws.shuffle(moved)
    fresh = iter(moved)
    return [next(fresh) if moves else word for word, moves in zip(words, is_moved, strict=True)]


def _shuffle_content(words: Sequence[str], is_content: Sequence[bool], draws: random.Random) -> list[str]:
    return _shuffle_where(words, is_content, draws)


def _shuffle_rest(words: Sequence[str], is_content: Sequence[bool], draws: random.Random) -> list[str]:
    return _shuffle_where(words, [not moves for moves in is_content], draws)


def _shuffle_within_trigrams(words: Sequence[str], is_content: Sequence[bool], draws: random.Random) -> list[str]:
    del is_content
    groups = _trigrams(words)
    for group in groups:
        draws.shuffle(group)
    return [word for group in groups for word in group]


def _shuffle_trigrams(words: Sequence[str], is_content: Sequence[bool], draws: random.Random) -> list[str]:
    del is_content
    groups = _trigrams(words)
    draws.shuffle(groups)
    return [word for group in groups for word in group]


def _shuffle_all(words: Sequence[str], is_content: Sequence[bool], draws: random.Random) -> list[str]:
    del is_content
    mixed = list(words)
    draws.shuffle(mixed)
    return mixed


def _trigrams(words: Sequence[str]) -> list[list[str]]:
    return [list(words[start : start + _GROUP]) for start in range(0, len(words), _GROUP)]


# ARO's five: nouns and adjectives; all other words; within groups of three; the groups; all words.
ORDERS: Mapping[str, _Shuffle] = {
    "order_content": _shuffle_content,
    "order_rest": _shuffle_rest,
    "order_within_trigrams": _shuffle_within_trigrams,
    "order_trigrams": _shuffle_trigrams,
    "order_all": _shuffle_all,
}
