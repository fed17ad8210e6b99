"""How much of a caption can be read in the picture: CAT's text-spotting rule, and the share of words."""

import re
import unicodedata
from collections.abc import Sequence, Set

_WORD = re.compile(r"[^\W_]+")
# Written in some captions, left out in others, and read now and then: "CHOL\u00c9RA", "MJOLK". Signs of other scripts stay.
_ACCENTS = re.compile("[\u0300-\u036f]")
# Shorter words are found in any text.
_MIN_WORD = 3
# Shorter words are found inside others that have nothing to do with them; CAT's window is as long.
_MIN_INNER_WORD = 5


def letters(text: str) -> str:
    """Return the letters and digits of a text, in lower case, without accents and next to each other."""
    return "".join(_words(text))


def longest_common_run(strings: Sequence[str], caption: str) -> int:
    """Return the length of the longest run of characters that the caption shares with one of the strings.

    Only letters and digits count, case and accents do not; a run may go on from one word of the caption to the next, not from one string
    to another.
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

    Recognisers drop spaces: a word also counts inside a longer one of the picture if it has five characters or more, or if words of the
    caption make up all of that longer one. "and" is not seen in "Chandra", but "two" is in "twored" where the caption says "two red".
    """
    words = _words(caption)
    wanted = [word for word in words if len(word) >= _MIN_WORD]
    if not wanted:
        return None
    read = " ".join(letters(string) for string in strings)
    known = set(words)
    seen = {part for string in strings for word in _words(string) for part in _parts(word, known)}
    return sum(word in seen or (len(word) >= _MIN_INNER_WORD and word in read) for word in wanted) / len(wanted)


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))
    return [_to_plain(word).casefold() for word in _WORD.findall(plain)]


def _to_plain(word: str) -> str:
    """Return a word with small and wide letters as plain ones; one with a fraction, which would get a sign, as it is."""
    plain = unicodedata.normalize("NFKC", word)
    return plain if plain.isalnum() else word


def _parts(read: str, known: Set[str]) -> set[str]:
    """Return the known words that occur where known words make up all of `read`; empty where they cannot."""
    lengths = {len(word) for word in known}
    spans = [
        (start, start + length)
        for start in range(len(read))
        for length in lengths
        if start + length <= len(read) and read[start : start + length] in known
    ]
    from_start, to_end = {0}, {len(read)}
    for start, stop in spans:
        if start in from_start:
            from_start.add(stop)
    for start, stop in reversed(spans):
        if stop in to_end:
            to_end.add(start)
    return {read[start:stop] for start, stop in spans if start in from_start and stop in to_end}
