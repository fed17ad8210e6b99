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
_TRIES = 8  # a draw may leave a short caption as it was

_Shuffle = Callable[[Sequence[str], Sequence[bool], random.Random], list[str]]


class Perturber:
    """Makes the wrong captions of a caption, about 400 captions per second and core; English."""

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
        # Signs stay where they are: spaces around them would give a wrong caption away.
        pairs = [
            (place, _is_content(token))
            for place, token in zip(locate(caption), self._tagger.tag(caption), strict=True)
            if place[0][0].isalnum()
        ]
        words = [word for (word, _, _), _ in pairs]
        spans = [(start, end) for (_, start, end), _ in pairs]
        for kind, shuffle in ORDERS.items():
            draws = random.Random(hashlib.sha256(f"{kind} {caption}".encode()).digest())
            order = _draw_order(shuffle, words, [is_content for _, is_content in pairs], draws)
            if order:
                found[kind] = [_put(caption, spans, order)]
        return found


def _is_content(token: Token) -> bool:
    return token.tag.startswith(_CONTENT_TAGS) and token.text[0].isalpha()


def _draw_order(shuffle: _Shuffle, words: Sequence[str], is_content: Sequence[bool], draws: random.Random) -> list[str]:
    """Return the first of a few orders that is another than it was, or nothing where there is none."""
    before = [word.casefold() for word in words]
    for _ in range(_TRIES):
        order = shuffle(words, is_content, draws)
        if [word.casefold() for word in order] != before:
            return order
    return []


def _put(caption: str, spans: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """Return the caption with other words in the places of its own."""
    parts, position = [], 0
    for (start, end), word in zip(spans, words, strict=True):
        parts += [caption[position:start], word]
        position = end
    return "".join([*parts, caption[position:]])


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
