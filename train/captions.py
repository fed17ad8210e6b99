"""Draws a sample's text from its dataset's caption mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import InputError

FALLBACK_COLUMN = "alt_text"
ELEMENTS_SUFFIX = "[*]"
# An element of a list that says less than this is no caption (LaCLIP, arXiv 2305.20088).
_MIN_WORDS = 2
# From here on Unicode has scripts that write whole sentences without a space.
_FIRST_UNSPACED = "\u2e80"

# What a caption column holds for one sample.
Caption = str | Sequence[str | None] | None


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Caption columns with their probabilities, which add up to 1; a column of probability 0 is only fallen back to."""

    columns: tuple[str, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def resolve(cls, captions: Mapping[str, float], available: Sequence[str]) -> "Mixture":
        """Return the mixture over the columns a dataset has.

        `rewrite[*]` names the list column `rewrite`, whose elements share its probability evenly. `alt_text`, where the dataset has it
        and the mixture does not name it, becomes the last fallback.
        """
        shares = dict(captions)
        if not shares or not all(0 <= share < float("inf") for share in shares.values()) or not any(shares.values()):
            raise InputError(f"caption probabilities are 0 or more and not all 0, got {shares}")
        resolved: dict[str, float] = {}
        for name, share in shares.items():
            column = name if name in available else name.removesuffix(ELEMENTS_SUFFIX)
            if column not in available:
                raise InputError(
                    f"caption column {name!r} is not in the dataset, which has {', '.join(available) or 'none'}; "
                    "select and build with this caption, or leave it out"
                )
            resolved[column] = resolved.get(column, 0.0) + share
        if FALLBACK_COLUMN in available:
            resolved.setdefault(FALLBACK_COLUMN, 0.0)
        total = sum(resolved.values())
        return cls(columns=tuple(resolved), probabilities=tuple(share / total for share in resolved.values()))

    def draw(self, captions: Sequence[Caption], draw: float, element_draw: float) -> str:
        """Return the text of one sample, given its value in each column and two draws in [0, 1).

        A column whose caption is missing or blank is drawn again among the others, in proportion to their probabilities; then come the
        columns of probability 0, in order. An element of a list that is blank or has fewer than two words gives way to the `alt_text` where
        there is one, as in LaCLIP: with four rewrites, `alt_text: 0.2, rewrite[*]: 0.8` is its even draw. A sample without any text gives
        the empty string.
        """
        left = list(range(len(self.columns)))
        while left:
            chosen, draw = self._choose(left, draw)
            text = self._pick(captions, chosen, element_draw)
            if text:
                return text
            left.remove(chosen)
        return ""

    def _choose(self, left: Sequence[int], draw: float) -> tuple[int, float]:
        """Return a column drawn among those left, and a fresh draw made of what the choice left undecided of this one."""
        total = sum(self.probabilities[column] for column in left)
        point = draw * total
        last = left[0]
        for column in left:
            share = self.probabilities[column]
            if share == 0.0:
                continue
            last = column
            if point < share:
                return column, min(point / share, 1 - 2**-53)
            point -= share
        return last, draw

    def _pick(self, captions: Sequence[Caption], column: int, draw: float) -> str:
        """Return a column's caption without the white space around it; of a list an element, evenly drawn, or the web text in its place."""
        caption = captions[column]
        if caption is None or isinstance(caption, str):
            return (caption or "").strip()
        drawn = (caption[int(draw * len(caption))] or "").strip() if caption else ""
        if not _says_something(drawn) and FALLBACK_COLUMN in self.columns:
            original = captions[self.columns.index(FALLBACK_COLUMN)]
            if isinstance(original, str) and original.strip() and any(text and text.strip() for text in caption):
                return original.strip()
        texts = [text.strip() for text in caption if text and text.strip()]
        return texts[int(draw * len(texts))] if texts else ""


def _says_something(text: str) -> bool:
    return len(text.split()) >= _MIN_WORDS or any(character >= _FIRST_UNSPACED for character in text)
