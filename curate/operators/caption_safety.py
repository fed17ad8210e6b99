"""Words in captions that one may not want to train on."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.fingerprint import file_identity
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError

if TYPE_CHECKING:
    from ahocorasick import Automaton

_NOT_WORD = re.compile(r"[\W_]+")
# More of a caption than this is not read.
_MAX_CHARACTERS = 20_000
# The kind of phrases that hold words of the others and mean no harm.
_INNOCENT = "innocent"


@dataclass(frozen=True, kw_only=True)
class CaptionSafety(ShardOperator):
    """Words and phrases of lists in the caption; about 5 us per caption.

    caption_is_unsafe         any of them
    caption_unsafe_kinds      the lists they are in, in the order of the file
    caption_unsafe_words      what was found, in the order of the caption, each once
    caption_num_unsafe_words  how often, 0 and up

    Whole words count, without case and accents; what is not a letter or digit is a space. `words` is a JSON file {kind: [word or phrase,
    ...]}, or a text file with one per line (kind "unsafe"). The kind "innocent" lists phrases in which words of the others do not count:
    "naked eye". The list that comes along has the kinds sexual, violence, self_harm and drugs, English and plain: it misses much, and meets
    textbooks of anatomy and history as any word list does. It holds no slurs: bring a list for them.
    """

    name = "caption_safety"
    version = 2
    reads = ("alt_text",)
    nullable = ("alt_text",)
    writes = pa.schema([
        ("caption_is_unsafe", pa.bool_()),
        ("caption_unsafe_kinds", pa.list_(pa.string())),
        ("caption_unsafe_words", pa.list_(pa.string())),
        ("caption_num_unsafe_words", pa.int32()),
    ])

    words: str = ""  # file of one's own lists

    def __post_init__(self) -> None:
        if self.words:
            object.__setattr__(self, "words", str(Path(self.words).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the lists' digest: where the file lies does not matter."""
        return {"words": file_identity(self._path())}

    def _path(self) -> str:
        return self.words or str(files("curate.wordlists") / "unsafe.json")

    def load(self) -> Annotate:
        lists = read_lists(self._path())
        kinds = [kind for kind in lists if kind != _INNOCENT]
        automaton = _build(lists)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            found = [_find(automaton, text or "") for text in batch.column("alt_text").to_pylist()]
            return {
                "caption_is_unsafe": [bool(hits) for hits in found],
                "caption_unsafe_kinds": [
                    [kind for number, kind in enumerate(kinds) if any(number in hit[0] for hit in hits)]
                    for hits in found
                ],
                "caption_unsafe_words": [list(dict.fromkeys(word for _, word in hits)) for hits in found],
                "caption_num_unsafe_words": [len(hits) for hits in found],
            }

        return annotate


def read_lists(path: str) -> dict[str, list[str]]:
    """Return the words of a file by kind; raises InputError where it holds none, or something else."""
    if not Path(path).is_file():
        raise InputError(f"word list {path!r} does not exist")
    text = Path(path).read_text(encoding="utf-8")
    if not path.endswith(".json"):
        lists = {"unsafe": [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]}
    else:
        try:
            lists = json.loads(text)
        except ValueError as error:
            raise InputError(f"word list {path!r} is no JSON: {error}") from error
    is_valid = isinstance(lists, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists.values()
    )
    if not is_valid or not any(lists.values()):
        raise InputError(f"word list {path!r} must hold words by kind, {{kind: [word, ...]}}, and at least one")
    blank = [word for words in lists.values() for word in words if not fold(word).strip()]
    if blank:
        raise InputError(f"word list {path!r} has the word {blank[0]!r}, which has neither letter nor digit")
    return dict(lists)


def fold(text: str) -> str:
    """Return a text without case and accents, one space for all that is neither letter nor digit, and one at both ends."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in decomposed if not unicodedata.combining(character))
    return f" {_NOT_WORD.sub(' ', text.lower()).strip()} "


def _build(lists: Mapping[str, Sequence[str]]) -> "Automaton":
    """Return what finds every word, each with the numbers of its kinds (none: innocent) and itself as it is compared."""
    import ahocorasick

    kinds: dict[str, set[int]] = {fold(word): set() for word in lists.get(_INNOCENT, ())}
    for number, words in enumerate(words for kind, words in lists.items() if kind != _INNOCENT):
        for word in words:
            kinds.setdefault(fold(word), set()).add(number)
    automaton = ahocorasick.Automaton()
    for word, numbers in kinds.items():
        automaton.add_word(word, (frozenset(numbers), word))
    automaton.make_automaton()
    return automaton


def _find(automaton: "Automaton", text: str) -> list[tuple[frozenset[int], str]]:
    """Return the kinds and words that a text holds, those within innocent phrases left out."""
    found = list(automaton.iter(fold(text[:_MAX_CHARACTERS])))
    harmless = [(end - len(word), end) for end, (kinds, word) in found if not kinds]
    return [
        (kinds, word.strip())
        for end, (kinds, word) in found
        if kinds and not any(start <= end - len(word) and end <= stop for start, stop in harmless)
    ]
