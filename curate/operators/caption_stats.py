"""Counts, ratios and flags of the caption's text."""

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.operator import Annotate, ShardOperator

# RE2 syntax, run by Arrow over the whole column.
_URL = r"(?i)(https?://|ftp://|\bwww\.)|\b[a-z0-9][a-z0-9-]*\.(com|org|net|info|biz|edu|gov|co\.uk|de|fr|ru|jp|cn|io|shop)(/|\b)"
_EXTENSION = r"(jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|avif|heic|psd|eps|pdf|ico|raw|cr2|nef|mp4|mov|avi)"
_FILE_NAME = "|".join([
    # anything with an image's extension and no sentence around it; spaces are fine ("my photo 3.jpg")
    rf"(?i)^\s*[^\s/\\]*([ _-][^\s/\\]*){{0,7}}\.{_EXTENSION}\s*$",
    # a camera's or a program's numbering
    r"(?i)^\s*(img|image|dsc|dscn|dscf|dsci|pict|pic|photo|mvc|sam|gopr|dji|pxl|wp|vid|screenshot|screen[ _-]shot|scan|file|untitled)"
    r"[ _-]*\(?\d[\d _.:()-]*\)?\s*$",
    r"(?i)^\s*_?([a-z]{2,4}_?\d{4,}|[a-z]\d{5,})\s*$",
    # digests and other machine names
    r"(?i)^\s*[0-9a-f]{16,}\s*$",
    r"(?i)^\s*[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\s*$",
    r"^\s*[\d_.-]{5,}\s*$",
])
_BOILERPLATE = "|".join([
    # the whole caption is a word that says nothing
    r"(?i)^\W*(an? )?(image|images|photo|photos|picture|pic|img|thumbnail|thumb|icon|logo|banner|avatar|graphic|figure|untitled|default"
    r"|placeholder|null|none|undefined|n/?a|blank|spacer|loading|advertisement|ad|home|main image|featured image|product image"
    r"|profile (picture|photo|image)|user avatar|no caption|no description|alt text|image description)(\s*#?\d+)?\W*$",
    r"(?i)\b(no|missing) (image|photo|picture|thumbnail|preview)s?( (is |was )?(yet )?(available|found|provided))?\W*$",
    r"(?i)\b(image|photo|picture|preview) (is )?(not|un)\s?-?(available|found|loaded)\b",
    r"(?i)\b(image|photo|picture) (coming soon|placeholder|may contain)\b|\bmay be an image of\b",
    r"(?i)\b(click|tap|hover) (here|to|on|for|the)\b.*\b(enlarge|zoom|view|see|open|expand|download|larger|more|info|details)\b|\bclick here\b",
    r"(?i)\b(view|see) (the )?(full|larger?|bigger|original|high[- ]res\w*) ?(size|image|photo|picture|version)?\W*$",
    r"(?i)\b(download|buy|shop|order|subscribe|sign up|log ?in|register|add to cart|read more|learn more)( it)?( now| here| today)?\W*$",
    r"(?i)\ball rights reserved\b|\bterms of (use|service)\b|\bprivacy policy\b|\bskip to (main )?content\b|\bcookie (policy|settings)\b",
    r"(?i)\b(share|follow|like|pin|find) (this |it |us )?(on|via) (facebook|twitter|instagram|pinterest|linkedin|whatsapp|youtube|x)\b",
    r"(?i)\bselected for the #|\b(shipping|delivery) on (all )?orders\b",
    r"(?i)\bbest (price|deal)s? (online|guaranteed)\b",
    # an offer of nothing in particular
    r"(?i)^\W*(buy|shop|order)( it| yours)? (now|online|today)(\W+(with|and|for|at|free|fast|the|best|low|shipping|delivery|prices?))*\W*$",
    r"(?i)\bno (image )?(description|caption|title|alt(ernative)? text)( (is |was )?(yet )?(available|found|provided|given))?\W*$",
    # a gallery's counter
    r"(?i)^\W*(image|photo|picture|slide|figure|page|view)?\s*#?\d+\s*(of|/)\s*\d+\W*$",
    r"(?i)\b(sign up|subscribe|register|join)\b.{0,30}\b(newsletters?|updates|mailing list|account)\b",
    r"(?i)\b(subject to|protected by) copyright\b|\bcopyright (protected|notice)\b",
    r"(?i)\b(stock (photo|image|vector|illustration)s?|royalty[- ]free|clip ?art)\W*$",
])


@dataclass(frozen=True, kw_only=True)
class CaptionStats(ShardOperator):
    """Counts, ratios and flags of the caption; a missing caption counts as an empty one; about 10 us per caption.

    caption_num_words          words separated by white space (DataComp's basic filter keeps > 2)
    caption_num_chars          Unicode characters (DataComp keeps > 5, LAION >= 5)
    caption_repetition_ratio   share of words that occurred before in the caption, case ignored, 0 to 1
    caption_digit_ratio        digits / characters, 0 to 1
    caption_symbol_ratio       characters that are neither letter, mark, number nor space / characters, 0 to 1
    caption_upper_ratio        upper-case letters / letters, 0 to 1
    caption_has_url            an address, or a host name of a common domain
    caption_is_file_name       nothing but a file's name, a camera's number or a digest
    caption_is_boilerplate     text that web pages put under any picture ("image not available", "click to enlarge"); English
    """

    name = "caption_stats"
    version = 2
    reads = ("alt_text",)
    nullable = ("alt_text",)
    writes = pa.schema([
        ("caption_num_words", pa.int32()),
        ("caption_num_chars", pa.int32()),
        ("caption_repetition_ratio", pa.float32()),
        ("caption_digit_ratio", pa.float32()),
        ("caption_symbol_ratio", pa.float32()),
        ("caption_upper_ratio", pa.float32()),
        ("caption_has_url", pa.bool_()),
        ("caption_is_file_name", pa.bool_()),
        ("caption_is_boilerplate", pa.bool_()),
    ])

    def load(self) -> Annotate:
        return _annotate


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    captions = batch.column("alt_text").combine_chunks().fill_null("")
    words = [text.split() for text in captions.to_pylist()]
    num_words = np.array([len(found) for found in words], dtype=np.int32)
    num_distinct = np.array([len({word.casefold() for word in found}) for found in words], dtype=np.int32)
    num_chars = pc.utf8_length(captions).to_numpy()
    digits, uppers, letters, symbols = count_kinds(captions)
    return {
        "caption_num_words": num_words,
        "caption_num_chars": num_chars,
        "caption_repetition_ratio": _ratio(num_words - num_distinct, num_words),
        "caption_digit_ratio": _ratio(digits, num_chars),
        "caption_symbol_ratio": _ratio(symbols, num_chars),
        "caption_upper_ratio": _ratio(uppers, letters),
        "caption_has_url": pc.match_substring_regex(captions, _URL),
        "caption_is_file_name": pc.match_substring_regex(captions, _FILE_NAME),
        "caption_is_boilerplate": pc.match_substring_regex(captions, _BOILERPLATE),
    }


def count_kinds(texts: pa.Array) -> np.ndarray:
    """Return the numbers of digits, upper-case letters, letters and symbols of each text, as rows of an array."""
    # Most captions are ASCII, whose bytes are their characters: one look into a table for all of them together.
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    bounds = offsets - offsets[0]
    sums = np.zeros((len(_KINDS), len(data) + 1), dtype=np.int32)
    np.cumsum(_KINDS[:, data], axis=1, dtype=np.int32, out=sums[:, 1:])
    *counts, foreign = sums[:, bounds[1:]] - sums[:, bounds[:-1]]
    found = np.array(counts)
    for row in np.flatnonzero(foreign).tolist():
        found[:, row] = np.sum([_kinds_of(character) for character in texts[row].as_py()], axis=0)
    return found


@functools.lru_cache(maxsize=65_536)
def _kinds_of(character: str) -> tuple[bool, bool, bool, bool]:
    """Tell whether a character is a digit, an upper-case letter, a letter, a symbol."""
    category = unicodedata.category(character)
    is_symbol = category[0] not in "LMNZ" and character not in "\t\n\f\r"
    return category == "Nd", category == "Lu", category[0] == "L", is_symbol


# The kinds of each byte, and whether it is part of a character beyond ASCII.
_KINDS = np.zeros((5, 256), dtype=np.uint8)
_KINDS[:4, :128] = np.array([_kinds_of(chr(code)) for code in range(128)]).T
_KINDS[4, 128:] = 1


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray((part / np.maximum(whole, 1)).astype(np.float32))
