"""How much of a caption can be read in the picture: CAT's text-spotting rule, and the share of words."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")
# Shorter words are found in any text.
_MIN_WORD = 3


def letters(text: str) -> str:
    """Return the letters and digits of a text, in lower case and next to each other."""
    return "".join(_WORD.findall(text.casefold()))


def longest_common_run(strings: Sequence[str], caption: str) -> int:
    """Return the length of the longest run of characters that the caption shares with one of the strings.

    Only letters and digits count, case does not; a run may go on from one word of the caption to the next, not from one string to another.
    """
    wanted = letters(caption)
    best = 0
    for string in strings:
        spotted = letters(string)
        start = 0
        # Longer than the best so far, from every start: whatever holds a longer run holds a run of best + 1.
        while start + best < len(spotted):
            if spotted[start : start + best + 1] in wanted:
                best += 1
            else:
                start += 1
    return best


def seen_word_ratio(strings: Sequence[str], caption: str) -> float | None:
    """Return the share of the caption's words, of three characters or more, that can be read in the picture; None without any.

    A word also counts inside a longer run of characters: recognisers drop spaces.
    """
    words = [word for word in _WORD.findall(caption.casefold()) if len(word) >= _MIN_WORD]
    if not words:
        return None
    read = " ".join(letters(string) for string in strings)
    return sum(word in read for word in words) / len(words)
