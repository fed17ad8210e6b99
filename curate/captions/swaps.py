"""Captions that say something else in the same words: two words or phrases of one kind change places (NegCLIP, arXiv 2210.01936)."""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curate.parsing.tagger import Tagger, Token, locate

KINDS = ("noun", "adjective", "verb", "adverb", "noun_phrase", "verb_phrase")
_TAGS = {
    "noun": frozenset(["NN0", "NN1", "NN2", "NP0"]),
    "adjective": frozenset(["AJ0", "AJC", "AJS", "ORD", "CRD"]),
    "verb": frozenset(["VVB", "VVD", "VVG", "VVI", "VVN", "VVZ"]),
    "adverb": frozenset(["AV0"]),
}
_NOUNS = _TAGS["noun"]
_MODIFIERS = _TAGS["adjective"] | {"VVG", "VVN"}
_DETERMINERS = frozenset(["AT0", "DPS", "DT0"])
_NOT_ADJECTIVES = frozenset(["next", "such", "due"])  # as in "next to"
# Between two partners these leave the meaning as it was: "a cat and a dog".
_JOINS = frozenset(["CJC", *_DETERMINERS])
_JOIN_SIGNS = frozenset([",", "&", "/", "+", "|"])
_VOWEL = re.compile(r"[aeiou]|8|1[18](?!\d)", re.IGNORECASE)
# "a university" and "a one" sound otherwise than they are written, as does "an hour".
_CONSONANT = re.compile(r"(?:uni(?!n)|use|usu|euro?|one\b|once|ubiq|ufo|uk\b|us\b)", re.IGNORECASE)
_SILENT = re.compile(r"(?:hour|honest|honou?r|heir)", re.IGNORECASE)
# Pairs grow with the square of the units; a caption with more of them is a list of words.
_MAX_UNITS = 40


@dataclass(frozen=True, slots=True)
class Swap:
    """A caption with two units exchanged."""

    text: str
    kind: str
    first: str  # the units as they were
    second: str


@dataclass(frozen=True, slots=True)
class _Unit:
    """Tokens `first` up to `last` of a caption; only units with one `shape` fit each other's place."""

    first: int
    last: int
    shape: str


class Swapper:
    """Makes negatives, about 1,500 captions per second and core."""

    def __init__(self) -> None:
        self._tagger = Tagger()

    def swap(self, caption: str, kinds: Sequence[str], count: int, key: str) -> list[Swap]:
        """Return up to `count` negatives of each kind, drawn by `key` alone: never the caption itself, never the same twice."""
        places = locate(caption)
        tokens = self._tagger.tag(caption)
        found: list[Swap] = []
        known = {_normalise(caption)}
        for kind in kinds:
            draws = random.Random(hashlib.sha256(f"{key} {kind}".encode()).digest())
            pairs = list(_pairs(tokens, kind))
            draws.shuffle(pairs)
            # Partners of one form first: "dogs" for "cats" rather than for "cat".
            pairs.sort(key=lambda pair: pair[0].shape != pair[1].shape)
            num_made = 0
            for one, other in pairs:
                text = _exchange(caption, places, tokens, one, other)
                if num_made == count:
                    break
                if _normalise(text) in known:
                    continue
                known.add(_normalise(text))
                found.append(Swap(text, kind, _text(caption, places, one), _text(caption, places, other)))
                num_made += 1
        return found


def _pairs(tokens: Sequence[Token], kind: str) -> Iterator[tuple[_Unit, _Unit]]:
    units = list(itertools.islice(_units(tokens, kind), _MAX_UNITS))
    for one, other in itertools.combinations(units, 2):
        if one.last > other.first or _words(tokens, one) == _words(tokens, other):
            continue
        if not _is_listed(tokens, one, other):
            yield one, other


def _units(tokens: Sequence[Token], kind: str) -> Iterator[_Unit]:
    if kind == "noun_phrase":
        yield from _noun_phrases(tokens)
    elif kind == "verb_phrase":
        yield from _verb_phrases(tokens)
    else:
        for number, token in enumerate(tokens):
            if token.tag in _TAGS[kind] and token.text[0].isalpha() and token.text.lower() not in _NOT_ADJECTIVES:
                yield _Unit(number, number + 1, token.tag)


def _noun_phrases(tokens: Sequence[Token]) -> Iterator[_Unit]:
    """Yield modifiers with their nouns, without articles: "small black dog"."""
    number = 0
    while number < len(tokens):
        last_noun = -1
        end = number
        while end < len(tokens) and tokens[end].tag in _NOUNS | _MODIFIERS and tokens[end].text[0].isalnum():
            # "holding hands": a verb with its object is no phrase of a noun.
            if tokens[end].tag == "VVG" and end == number and not _follows_determiner(tokens, end):
                break
            if tokens[end].tag not in _NOUNS and last_noun >= 0:
                break
            last_noun = end if tokens[end].tag in _NOUNS else last_noun
            end += 1
        if last_noun >= 0:
            yield _Unit(number, last_noun + 1, tokens[last_noun].tag)
        number = max(end, number + 1)


def _verb_phrases(tokens: Sequence[Token]) -> Iterator[_Unit]:
    """Yield verbs with what follows up to their object: "chases the small dog"."""
    phrases = {phrase.first: phrase for phrase in _noun_phrases(tokens)}
    for number, token in enumerate(tokens):
        if token.tag not in _TAGS["verb"] or _follows_determiner(tokens, number):
            continue
        end = number + 1
        while end < len(tokens) and end not in phrases and tokens[end].tag in _DETERMINERS | {"PRP", "AVP", "AV0"}:
            end += 1
        if end in phrases:
            yield _Unit(number, phrases[end].last, token.tag)


def _follows_determiner(tokens: Sequence[Token], number: int) -> bool:
    return number > 0 and tokens[number - 1].tag in _DETERMINERS | _TAGS["adjective"]


def _is_listed(tokens: Sequence[Token], one: _Unit, other: _Unit) -> bool:
    """Tell whether nothing but joining words and articles lies between two units, whose order then says nothing ("tree house" neither)."""
    between = tokens[one.last : other.first]
    return all(token.tag in _JOINS or token.text in _JOIN_SIGNS for token in between)


def _exchange(
    caption: str, places: Sequence[tuple[str, int, int]], tokens: Sequence[Token], one: _Unit, other: _Unit
) -> str:
    first, second = _text(caption, places, one), _text(caption, places, other)
    if one.first == 0 and first[:1].isupper() and tokens[0].tag != "NP0":
        # The capital belongs to the place.
        first = first[:1].lower() + first[1:]
        second = second[:1].upper() + second[1:]
    start, end = places[one.first][1], places[one.last - 1][2]
    start_other, end_other = places[other.first][1], places[other.last - 1][2]
    before = _fit_article(caption[:start], second)
    between = _fit_article(caption[end:start_other], first)
    return before + second + between + first + caption[end_other:]


def _fit_article(text: str, following: str) -> str:
    """Return a text that may end in "a" or "an" with the one that the word after it needs."""
    found = re.search(r"(?:^|(?<=[^\w]))(a|an)(\s+)$", text[-12:], re.IGNORECASE)
    if not found:
        return text
    is_vowel = bool(_SILENT.match(following) or (_VOWEL.match(following) and not _CONSONANT.match(following)))
    article = found[1][0] + ("n" if is_vowel else "")
    return text[: len(text) - len(found[0])] + article + found[2]


def _text(caption: str, places: Sequence[tuple[str, int, int]], unit: _Unit) -> str:
    return caption[places[unit.first][1] : places[unit.last - 1][2]]


def _words(tokens: Sequence[Token], unit: _Unit) -> list[str]:
    return [token.text.lower() for token in tokens[unit.first : unit.last]]


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
