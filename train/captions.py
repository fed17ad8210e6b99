"""Draws a sample's text from its dataset's caption mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import InputError

FALLBACK_COLUMN = "alt_text"
ELEMENTS_SUFFIX = "[*]"

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
        columns of probability 0, in order. A sample without any text gives the empty string.
        """
        left = list(range(len(self.columns)))
        while left:
            chosen, draw = self._choose(left, draw)
            text = _pick(captions[chosen], element_draw)
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


def _pick(caption: Caption, draw: float) -> str:
    """Return a caption without the white space around it; of a list, an evenly drawn element among those that are not blank."""
    if caption is None or isinstance(caption, str):
        return (caption or "").strip()
    texts = [text.strip() for text in caption if text and text.strip()]
    return texts[int(draw * len(texts))] if texts else ""
