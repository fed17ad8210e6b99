"""Sentences of a caption with their places in it."""

import re
from dataclasses import dataclass

# What ends a sentence: signs of several scripts, also in a row and with what closes a quotation; line ends; the end mark of language models.
_END = re.compile(
    r"(?P<stop>(?:[.!?\u2026]+|[\u3002\uff01\uff1f\u061f\u06d4\u0964]+)[\"'\u201d\u2019)\]]*)|(?P<line>(?:</s>|[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029])+)"
)
# After these comes more of the same sentence; after the second kind a capital letter begins another; the third only matters before a number.
_OPENING = frozenset(
    re.findall(
        r"\S+", "mr mrs ms dr prof st mt ft rev hon gen col capt lt sgt gov sen rep vs eg e.g ie i.e cf ca approx"
    )
)
_CLOSING = frozenset(
    re.findall(
        r"\S+",
        "etc inc ltd co corp a.m p.m jr sr al dept est ave blvd rd bros ed eds jan feb mar apr jun jul aug sep sept oct nov dec",
    )
)
_COUNTING = frozenset(["no", "nos", "vol", "fig", "figs", "p", "pp"])
_LAST_WORD = re.compile(r"[^\s(\[\"'\u201c\u2018]*$")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
# "1." or "-" before an item of a list says nothing.
_BULLET = re.compile(r"\s*(?:[-*\u2022\u2013\u00b7]|\(?\d{1,2}[.)])(?=\s)\s*")
_WORD_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text: characters (Unicode code points) `start` up to `end`."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """Return the piece."""
        return text[self.start : self.end]


def split_sentences(text: str) -> list[Span]:
    """Return the sentences of a text, without white space at their ends and without bullets; never an empty one.

    A full stop within a number, after an abbreviation or an initial, or before a small letter does not end a sentence.
    """
    spans: list[Span] = []
    start = 0
    for match in _END.finditer(text):
        if match["line"] is not None:
            _add(spans, text, start, match.start())
            start = match.end()
        elif _ends_here(text, start, match):
            _add(spans, text, start, match.end())
            start = match.end()
    _add(spans, text, start, len(text))
    return spans


def merge_spans(spans: list[Span], count: int) -> list[Span]:
    """Return runs of `count` consecutive pieces, each as one piece; the last may be shorter."""
    return [
        Span(spans[first].start, spans[min(first + count, len(spans)) - 1].end) for first in range(0, len(spans), count)
    ]


def _add(spans: list[Span], text: str, start: int, end: int) -> None:
    bullet = _BULLET.match(text, start, end)
    start = bullet.end() if bullet else start
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end = start + len(piece.strip())
    if any(map(str.isalnum, text[start:end])):
        spans.append(Span(start, end))


def _ends_here(text: str, start: int, match: re.Match[str]) -> bool:
    sign, before, after = match["stop"], match.start(), match.end()
    if not sign.isascii():
        return True
    following = text[after : after + 1]
    if following and not following.isspace():
        return False  # 3.5, example.org, U.S.A.
    if sign[0] != ".":
        return True
    rest = text[after : after + 2].lstrip()
    if len(sign.rstrip("\"')]")) > 1:
        return not rest[:1].islower()  # "a dog ... and a cat"
    found = _LAST_WORD.search(text, max(0, before - _WORD_CHARACTERS), before)
    word = found[0] if found else ""
    lower = word.lower()
    if lower in _OPENING or (_INITIALS.fullmatch(word) and word not in {"I", "a"}):
        return False
    if lower in _CLOSING:
        return rest[:1].isupper()
    if lower in _COUNTING:
        return not rest[:1].isdigit()
    # A bullet's number belongs to what follows.
    if word.isdigit() and before - start <= _WORD_CHARACTERS and text[start:before].strip() == word:
        return False
    return not rest[:1].islower()
