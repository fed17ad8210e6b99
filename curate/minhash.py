"""Texts that are nearly the same: MinHash of character shingles, candidates by bands, each verified by its exact Jaccard similarity.

A text's shingles are its runs of five characters. The share of equal values of two MinHash signatures estimates the Jaccard similarity
of their shingle sets (Broder 1997); of `num_bands` bands of `num_rows` values each, two texts of similarity s agree in at least one with
probability 1 - (1 - s^num_rows)^num_bands, and only then are they compared.
"""

import functools
import hashlib
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SHINGLE = 5
# In a run of more texts than this that agree in a band, each is compared with the first ones only: no bucket costs the square of its size.
MAX_LEADERS = 64
_BLANK, _SYMBOL, _WORD = 0, 1, 2
# Elements hashed at once: they stay in the processor's cache.
_BLOCK_ELEMENTS = 1 << 17
_PAIR_BLOCK = 1 << 18
_SEED = 0x9E3779B97F4A7C15


@dataclass(frozen=True, eq=False)
class Shingles:
    """Distinct shingles of texts as 32-bit hashes, those of one text side by side and rising."""

    values: np.ndarray  # uint32
    ends: np.ndarray  # int64: where each text's shingles end

    def __len__(self) -> int:
        return len(self.ends)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Return how many shingles each text has."""
        return np.diff(self.ends, prepend=0)


@dataclass(frozen=True, eq=False)
class Sketches:
    """What tells of most pairs of texts, without their shingles, that they are not similar enough; it never errs about those that are."""

    bits: np.ndarray  # uint64, texts x 2: the bits that some shingle of the text sets
    lengths: np.ndarray  # int64: shingles per text

    def may_reach(self, threshold: float, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Tell of pairs whether their Jaccard similarity may be `threshold` or more.

        Sets of together n elements have similarity t or more if at most n (1 - t) / (1 + t) elements are in one alone, and the bits in which
        their sketches differ, like the difference of their sizes, are never more than these.
        """
        sizes, others = self.lengths[left], self.lengths[right]
        most = (sizes + others) * ((1 - threshold) / (1 + threshold)) + 1e-6
        may = np.abs(sizes - others) <= most
        rows = np.flatnonzero(may)
        differing = self.bits[left[rows]] ^ self.bits[right[rows]]
        may[rows] = np.bitwise_count(differing).sum(axis=1, dtype=np.int64) <= most[rows]
        return np.asarray(may)


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts as they are compared, as code points one after the other."""

    codes: np.ndarray  # uint32
    ends: np.ndarray  # int64: where each text's code points end

    def __len__(self) -> int:
        return len(self.ends)

    def digests(self) -> np.ndarray:
        """Return 128 bits of each text as rows of two uint64: equal for equal texts only."""
        data, ends = self.codes.tobytes(), (4 * self.ends).tolist()
        parts = [hashlib.blake2b(data[start:stop], digest_size=16).digest() for start, stop in pairwise([0, *ends])]
        return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


def normalise(captions: Sequence[str]) -> Texts:
    """Return captions as they are compared: compatibility forms and case folded, anything but letters and digits one space.

    A caption without letters and digits (emoji) is compared by what it has.
    """
    folded = [text if text.isascii() else unicodedata.normalize("NFKC", text) for text in captions]
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), np.uint32)
    lower, kinds = _tables()
    codes, found = lower[codes], kinds[codes]
    owners = np.repeat(np.arange(len(folded)), lengths)
    is_word = found == _WORD
    has_words = np.bincount(owners[is_word], minlength=len(folded)) > 0
    is_word |= (found == _SYMBOL) & ~has_words[owners]
    # One space stays before every word but a caption's first.
    before = np.append(False, is_word[:-1] & (owners[1:] == owners[:-1]))[: len(codes)]
    is_gap = ~is_word & before
    is_last_gap = _is_last(is_word, is_gap, owners)
    kept = is_word | (is_gap & ~is_last_gap)
    out = np.where(is_word, codes, np.uint32(32))[kept]
    return Texts(out, np.cumsum(np.bincount(owners[kept], minlength=len(folded))))


def _is_last(is_word: np.ndarray, is_gap: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Tell of gaps whether no word of the same caption follows."""
    places = np.flatnonzero(is_word)
    result = np.zeros(len(is_word), bool)
    gaps = np.flatnonzero(is_gap)
    following = np.searchsorted(places, gaps)
    is_end = following == len(places)
    if len(places):
        is_end |= owners[places[np.minimum(following, len(places) - 1)]] != owners[gaps]
    result[gaps] = is_end
    return result


def shingle(texts: Texts) -> Shingles:
    """Return the distinct shingles of texts; a text of fewer than five characters is one shingle."""
    lengths = np.diff(texts.ends, prepend=0)
    num_shingles = np.where(lengths, np.maximum(lengths - SHINGLE + 1, 1), 0)
    owners = np.repeat(np.arange(len(texts)), num_shingles)
    place = np.arange(len(owners)) + np.repeat(
        (texts.ends - lengths) - (np.cumsum(num_shingles) - num_shingles), num_shingles
    )
    stops = texts.ends[owners]
    padded = np.append(texts.codes, np.zeros(SHINGLE, np.uint32))
    hashes = np.zeros(len(owners), np.uint64)
    for offset in range(SHINGLE):
        # What reaches over the end of a short text counts as nothing.
        hashes = hashes * np.uint64(0x100000001B3) + np.where(place + offset < stops, padded[place + offset], 0)
    keys = (owners.astype(np.uint64) << np.uint64(32)) | (_mix(hashes) >> np.uint64(32))
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    counts = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return Shingles((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), np.cumsum(counts))


def sketch(shingles: Shingles) -> np.ndarray:
    """Return the bits of `Sketches` (texts x 2): each shingle sets one of 128."""
    bits = np.zeros((len(shingles), 2), np.uint64)
    filled = np.flatnonzero(shingles.lengths)
    if len(filled):
        starts = (shingles.ends - shingles.lengths)[filled]
        one = np.uint64(1) << (shingles.values & np.uint32(63)).astype(np.uint64)
        is_high = (shingles.values & np.uint32(64)) > 0
        for half, chosen in enumerate((~is_high, is_high)):
            bits[filled, half] = np.bitwise_or.reduceat(np.where(chosen, one, np.uint64(0)), starts)
    return bits


def band_keys(shingles: Shingles, num_bands: int, num_rows: int) -> np.ndarray:
    """Return a 64-bit key per text and band (texts x bands): equal where the band's `num_rows` MinHash values are."""
    keys = np.empty((len(shingles), num_bands), np.uint64)
    lengths = shingles.lengths
    starts = shingles.ends - lengths
    offsets, factors = _hash_functions(num_bands * num_rows)
    order = np.argsort(lengths, kind="stable")
    begin = 0
    while begin < len(order):
        # Texts of about the same length side by side, the shorter ones padded with a shingle of their own: it changes no minimum.
        count = max(1, _BLOCK_ELEMENTS // max(1, int(lengths[order[begin]])))
        rows = order[begin : begin + count]
        width = int(lengths[rows[-1]])
        if width * len(rows) > 2 * _BLOCK_ELEMENTS:
            rows = rows[: max(1, 2 * _BLOCK_ELEMENTS // width)]
            width = int(lengths[rows[-1]])
        place = np.minimum(np.arange(width)[:, None], lengths[rows] - 1) + starts[rows]
        block = shingles.values[place]
        for band in range(num_bands):
            key = np.zeros(len(rows), np.uint64)
            for row in range(band * num_rows, (band + 1) * num_rows):
                least = ((block ^ offsets[row]) * factors[row]).min(axis=0)
                key = _mix(key * np.uint64(_SEED) + least)
            keys[rows, band] = key
        begin += len(rows)
    return keys


def candidates(
    keys: np.ndarray, may_match: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions (left < right) of texts that agree in a band, each pair once; `keys` is (bands x texts).

    Pairs for which `may_match` is false are left out. Positions are an order of preference: in a band that more than `MAX_LEADERS` texts share, each is compared with that many of the first.
    """
    for band in range(len(keys)):
        column = np.asarray(keys[band])
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        is_start = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
        start = np.maximum.accumulate(np.where(is_start, np.arange(len(ordered)), 0))
        place = np.flatnonzero(~is_start)
        start = start[place]
        for leader in range(MAX_LEADERS):
            is_later = place - start > leader
            place, start = place[is_later], start[is_later]
            if not len(place):
                break
            for begin in range(0, len(place), _PAIR_BLOCK):
                part = slice(begin, begin + _PAIR_BLOCK)
                left, right = order[start[part] + leader], order[place[part]]
                if may_match is not None:
                    may = may_match(left, right)
                    left, right = left[may], right[may]
                yield _drop_seen(keys[:band], left, right)


def jaccard(shingles: Shingles, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the Jaccard similarity of pairs of texts, 0 to 1; two without shingles are the same."""
    lengths = shingles.lengths
    sizes = lengths[left] + lengths[right]
    similar = np.empty(len(left))
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(left):
        stop = max(begin + 1, int(np.searchsorted(ends, (ends[begin - 1] if begin else 0) + 8 * _BLOCK_ELEMENTS)))
        part = slice(begin, stop)
        pairs = np.arange(stop - begin, dtype=np.uint64)
        elements = np.concatenate([_owned(shingles, side[part], pairs) for side in (left, right)])
        elements.sort()
        is_shared = elements[1:] == elements[:-1]
        shared = np.bincount((elements[1:][is_shared] >> np.uint64(32)).astype(np.int64), minlength=stop - begin)
        union = sizes[part] - shared
        similar[part] = np.where(union, shared / np.maximum(union, 1), 1)
        begin = stop
    return similar


def _owned(shingles: Shingles, texts: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return the shingles of texts one after the other, each with the number of its owner above it."""
    lengths = shingles.lengths[texts]
    first = shingles.ends[texts] - lengths
    place = np.arange(int(lengths.sum())) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    return np.asarray((np.repeat(owners, lengths) << np.uint64(32)) | shingles.values[place])


def _drop_seen(earlier: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out pairs that agree in an earlier band: they were found there."""
    is_new = np.ones(len(left), bool)
    for column in earlier:
        is_new &= column[left] != column[right]
    return left[is_new], right[is_new]


def _hash_functions(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is xored to a shingle and the odd number it is multiplied by, of each hash function: bijections of 32 bits."""
    seeds = _mix(np.arange(1, 2 * number + 1, dtype=np.uint64) * np.uint64(_SEED))
    values = (seeds >> np.uint64(32)).astype(np.uint32)
    return values[:number], values[number:] | np.uint32(1)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the finaliser of splitmix64: every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return each code point's lower case, and whether it is blank, a symbol, or part of a word (letter, mark, number)."""
    lower = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    kinds = np.full(sys.maxunicode + 1, _BLANK, np.uint8)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)[0]
        kinds[code] = _WORD if category in "LMN" else _SYMBOL if category in "PS" else _BLANK
        if category == "L" and len(folded := character.lower()) == 1:
            lower[code] = ord(folded)
    return lower, kinds
