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
        """Return the text of one sample, as `choose` does, without its column."""
        return self.choose(captions, draw, element_draw)[0]

    def choose(self, captions: Sequence[Caption], draw: float, element_draw: float) -> tuple[str, int]:
        """Return the text of one sample and the place of its column, given its value in each column and two draws in [0, 1).

        A column whose caption is missing or blank is drawn again among the others, in proportion to their probabilities; then come the
        columns of probability 0, in order. An element of a list that is blank or has fewer than two words gives way to the `alt_text` where
        there is one, as in LaCLIP: with four rewrites, `alt_text: 0.2, rewrite[*]: 0.8` is its even draw. A sample without any text gives
        the empty string, of column -1.
        """
        left = list(range(len(self.columns)))
        while left:
            chosen, draw = self._draw_column(left, draw)
            text, column = self._pick(captions, chosen, element_draw)
            if text:
                return text, column
            left.remove(chosen)
        return "", -1

    def _draw_column(self, left: Sequence[int], draw: float) -> tuple[int, float]:
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

    def _pick(self, captions: Sequence[Caption], column: int, draw: float) -> tuple[str, int]:
        """Return a column's caption without the white space around it; of a list an element, evenly drawn, or the web text in its place.

        With it goes the column that it is of.
        """
        caption = captions[column]
        if caption is None or isinstance(caption, str):
            return (caption or "").strip(), column
        drawn = (caption[int(draw * len(caption))] or "").strip() if caption else ""
        if not _says_something(drawn) and FALLBACK_COLUMN in self.columns:
            fallback = self.columns.index(FALLBACK_COLUMN)
            original = captions[fallback]
            if isinstance(original, str) and original.strip() and any(text and text.strip() for text in caption):
                return original.strip(), fallback
        texts = [text.strip() for text in caption if text and text.strip()]
        return texts[int(draw * len(texts))] if texts else "", column


def _says_something(text: str) -> bool:
    return len(text.split()) >= _MIN_WORDS or any(character >= _FIRST_UNSPACED for character in text)
