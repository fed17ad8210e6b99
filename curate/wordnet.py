"""WordNet's database files, as far as they say which concept a word most often means.

Reads the folder that WordNet installs as `dict` (Debian's package wordnet-base has it in /usr/share/wordnet): index.noun, noun.exc and
their like for verbs, adjectives and adverbs. Their formats are described in wndb(5WN) and morphy(7WN).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import InputError

# Parts of speech in the order in which a word's meanings are listed, each with the endings that inflection leaves.
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
        *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    ),
    "verb": (
        *(("s", ""), ("ies", "y"), ("es", "e"), ("es", "")),
        *(("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
FILES = tuple(f"{name}" for part in _ENDINGS for name in (f"index.{part}", f"{part}.exc"))
# Longer than any word; the search for a base form takes time that grows with the square of the length.
_MAX_LETTERS = 100
_SYNSET_ID = re.compile(r"[nvars]?([0-9]{1,8})")


class WordNet:
    """The first meaning of every word; 155,287 words take 0.6 s to load, and 60 MB."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where a file is missing, or a line of it is not WordNet's."""
        self._first = {part: _read_index(Path(folder) / f"index.{part}") for part in _ENDINGS}
        self._irregular = {part: _read_exceptions(Path(folder) / f"{part}.exc") for part in _ENDINGS}

    def first_synset(self, word: str) -> int | None:
        """Return the offset of the first meaning, nouns before verbs, adjectives and adverbs; None for a word that is not there.

        Inflected forms stand for their base where they are no words themselves. Offsets of different parts of speech may be equal.
        """
        lower = word.lower()
        if len(lower) > _MAX_LETTERS:
            return None
        for part, first in self._first.items():
            form = self._base_form(lower, part)
            if form is not None:
                return first[form]
        return None

    def _base_form(self, word: str, part: str) -> str | None:
        known, irregular = self._first[part], self._irregular[part].get(word)
        if word in known:
            return word
        if irregular is not None:
            return next((form for form in irregular if form in known), None)
        forms = [word]
        while forms:
            forms = [
                form[: len(form) - len(old)] + new
                for form in forms
                for old, new in _ENDINGS[part]
                if form.endswith(old)
            ]
            found = next((form for form in forms if form in known), None)
            if found is not None:
                return found
        return None


def read_synset_offsets(path: str | Path) -> frozenset[int]:
    """Return the offsets of a file with a synset per line, as ImageNet writes them (n02084071) or bare; what follows on a line is ignored."""
    if not Path(path).is_file():
        raise InputError(f"file of synsets {str(path)!r} does not exist")
    found = set()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        match = _SYNSET_ID.fullmatch(line.split()[0])
        if not match:
            raise InputError(f"{path}:{number}: {line.split()[0]!r} is no synset; write n02084071, or its digits alone")
        found.add(int(match[1]))
    if not found:
        raise InputError(f"file of synsets {str(path)!r} holds none; write one a line, such as n02084071")
    return frozenset(found)


def _read_index(path: Path) -> dict[str, int]:
    first = {}
    for number, line in enumerate(_read_lines(path), 1):
        if line.startswith(" "):  # the licence
            continue
        fields = line.split()
        meaning = _first_meaning(fields)
        if meaning is None:
            raise InputError(
                f"{path}:{number} is no line of WordNet's index, which lists a word's meanings: {line[:80]!r}"
            )
        first[fields[0]] = meaning
    return first


def _first_meaning(fields: Sequence[str]) -> int | None:
    """Return the first meaning of a line: word, part of speech, number of meanings, of pointers, the pointers, two numbers, the meanings."""
    if len(fields) < 4 or not (fields[2].isdecimal() and fields[3].isdecimal()):
        return None
    meanings = fields[6 + int(fields[3]) :]
    is_whole = meanings and len(meanings) == int(fields[2]) and meanings[0].isdecimal()
    return int(meanings[0]) if is_whole else None


def _read_exceptions(path: Path) -> dict[str, Sequence[str]]:
    rows = (line.split() for line in _read_lines(path))
    return {row[0]: row[1:] for row in rows if row}


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; give WordNet's folder of database files, which holds {', '.join(FILES[:2])} and the like"
        )
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
