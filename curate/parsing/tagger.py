"""Words with their parts of speech, by HanTa's English model (Wartena 2019), which lies in its wheel."""

import functools
import re
from dataclasses import dataclass
from typing import Any

# A word may hold hyphens and apostrophes, a number points and commas; a possessive or contracted ending is a token of its own.
_TOKEN = re.compile(
    r"\d+(?:[.,:x/-]\d+)*[^\W_]*(?:-[^\W\d_]+)*|[^\W\d_][^\W_]*(?:[-'\u2019][^\W_]+)*|['\u2019](?:s|re|ve|ll|d|m)\b|[^\w\s]"
)
# Addresses and file names hold words that say nothing of the picture. Bounded, and begun at the beginnings of words: tried at every letter
# of a caption without spaces they would take the square of its length.
_NOT_LANGUAGE = re.compile(
    r"(?:https?://|www\.)\S+|(?<!\S)\S{1,320}@\S{1,255}\.\w+|\b[\w-]{1,63}\.(?:com|org|net|co\.uk)\b\S*"
    r"|(?<!\S)\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg)\b",
    re.IGNORECASE,
)
_ENDING = re.compile(r"^(.+?)(n['\u2019]t|['\u2019](?:s|re|ve|ll|d|m)?)$", re.IGNORECASE)
_MODEL = "morphmodel_en.pgz"
_CACHED_WORDS = 1 << 17
# More of a caption than this is not language, and the tagger's time grows with it.
MAX_TOKENS = 400
_MAX_LETTERS = 60
_MAX_CHARACTERS = 20_000
# A headline or product title writes nearly all words with a capital, which then says nothing of names.
_TITLE_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Token:
    """A word as written, its part of speech in the tagset C5 of the British National Corpus, and its base form."""

    text: str
    tag: str
    lemma: str


def split(caption: str) -> list[str]:
    """Return the words and signs of a caption, at most `MAX_TOKENS`."""
    return [word for word, _, _ in locate(caption)]


def locate(caption: str) -> list[tuple[str, int, int]]:
    """Return the words and signs of `split`, each with the characters of the caption, from and up to, that it stands for."""
    tokens: list[tuple[str, int, int]] = []
    # As many spaces as characters, so that places stay what they are.
    language = _NOT_LANGUAGE.sub(lambda found: " " * len(found[0]), caption[:_MAX_CHARACTERS])
    for match in _TOKEN.finditer(language):
        word = match[0][:_MAX_LETTERS]
        ending = _ENDING.match(word)
        if ending:
            middle = match.start() + len(ending[1])
            tokens.append((ending[1], match.start(), middle))
            tokens.append((ending[2].lower().replace("\u2019", "'"), middle, match.start() + len(word)))
        else:
            tokens.append((word, match.start(), match.start() + len(word)))
        if len(tokens) >= MAX_TOKENS:
            break
    return tokens[:MAX_TOKENS]


class Tagger:
    """HanTa with the analyses of words kept: captions repeat a small vocabulary."""

    def __init__(self) -> None:
        from HanTa.HanoverTagger import HanoverTagger

        self._hanta: Any = HanoverTagger(_MODEL)
        # The tagger computes them anew for every sentence, which is most of its time.
        self._hanta._tag_word = functools.lru_cache(_CACHED_WORDS)(self._hanta._tag_word)
        self._lemma = functools.lru_cache(_CACHED_WORDS)(self._find_lemma)

    def tag(self, caption: str) -> list[Token]:
        """Return the tokens of a caption."""
        words = split(caption)
        if not words:
            return []
        letters = [word for word in words if word[0].isalpha()]
        is_title = sum(word[0].isupper() for word in letters) > _TITLE_SHARE * len(letters)
        shown = [word.lower() for word in words] if is_title else words
        tags = self._hanta.tag_sent(shown, taglevel=0, casesensitive=not is_title)
        return [Token(word, tag, self._lemma(form, tag)) for word, form, tag in zip(words, shown, tags, strict=True)]

    def _find_lemma(self, word: str, tag: str) -> str:
        if tag[0] not in "NV" or tag == "NP0":
            return word.lower()
        lemma: str = self._hanta.analyze(word, pos=tag)[0]
        return lemma.lower()
