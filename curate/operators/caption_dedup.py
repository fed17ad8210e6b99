"""Near copies of a caption within the pool, by MinHash."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curate.grouping import star_groups
from curate.minhash import Shingles, Sketches, band_keys, candidates, jaccard, normalise, shingle, sketch
from curate.operator import PoolOperator
from curate.pool_rows import EVERYTHING, missing_errors, stream, stream_query
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_ORDERS = {"longest": "length(alt_text) DESC, uid", "smallest_uid": "uid"}
# White space alone, control characters included, is no caption.
_CAPTION = f"CASE WHEN status = '{STATUS_SUCCESS}' AND regexp_matches(alt_text, '\\S') THEN alt_text END"


@dataclass(frozen=True, kw_only=True)
class CaptionDedup(PoolOperator):
    """Near copies of a caption: equal after normalisation, then by MinHash LSH (Broder 1997; Lee et al., arXiv 2107.06499), verified.

    caption_dedup_group        uid of the row that stands for the group: every member is at least `threshold` similar to it
    caption_dedup_num_copies   rows of the group, 1 and up
    is_caption_near_duplicate  false for the row that stands for the group, true for the others
    caption_dedup_similarity   Jaccard similarity of the row's shingles with that one's, `threshold` to 1

    Captions are compared without case, punctuation and repeated white space, by the Jaccard similarity of their runs of five characters.
    `num_bands` bands of `num_rows` MinHash values find candidates: two captions of similarity s with probability
    1 - (1 - s^num_rows)^num_bands, which is .92 at s = .8 and .9996 at .9 for the defaults (datatrove's); each is verified, so no pair
    below `threshold` is grouped. Of more than 64 captions that agree in a band, each is compared with the 64 most preferred. `keep` says
    which row stands for a group: `longest` caption as written (uid breaks ties) or `smallest_uid`. Only rows with a picture and a caption
    take part. About 40 us of CPU per caption, 150 bytes of memory per row, 350 bytes on disk per distinct caption.
    """

    name = "caption_dedup"
    version = 2
    reads = ("alt_text", "status", "error_message")
    writes = pa.schema([
        ("caption_dedup_group", pa.string()),
        ("caption_dedup_num_copies", pa.int32()),
        ("is_caption_near_duplicate", pa.bool_()),
        ("caption_dedup_similarity", pa.float32()),
    ])

    threshold: float = 0.8  # least Jaccard similarity of copies, above 0 to 1
    num_bands: int = 14
    num_rows: int = 8  # MinHash values per band
    keep: str = "longest"  # longest or smallest_uid

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"caption_dedup threshold is {self.threshold}; it must be above 0 and at most 1")
        if self.num_bands < 1 or self.num_rows < 1:
            raise InputError("caption_dedup: num_bands and num_rows must be 1 or more")
        if self.keep not in _ORDERS:
            raise InputError(f"caption_dedup keep is {self.keep!r}; it must be one of {', '.join(_ORDERS)}")

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        digests, has_caption, places = self._read(pool, work)
        leaders = _lead_equal(digests, has_caption, places)
        rows = np.unique(leaders[has_caption])
        texts = _Distinct(rows, places)
        keys, shingles, sketches = self._hash(pool, texts, work)
        left, right = self._pairs(keys, shingles, sketches, texts)
        best = texts.rows_by_place[star_groups(len(rows), left, right)]
        representatives = np.full(len(leaders), -1)
        # A row stands where the first of its equals stands.
        of_leader = np.full(len(leaders), -1)
        of_leader[texts.rows_by_place] = best
        representatives[has_caption] = of_leader[leaders[has_caption]]
        similarity = np.ones(len(leaders), np.float32)
        copies = np.flatnonzero(of_leader[rows] != rows)
        similarity[rows[copies]] = jaccard(shingles, copies, np.searchsorted(rows, of_leader[rows[copies]]))
        similarity = similarity[leaders]
        yield from self._write(pool, representatives, similarity)

    def _read(self, pool: "DuckDBPyRelation", work: "PoolWork") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return every row's digest of the normalised caption, whether it has one, and its place in the order of preference."""
        rank = f"row_number() OVER (ORDER BY {_ORDERS[self.keep]}) - 1"
        query = f"SELECT shard, row, {_CAPTION} AS caption, {rank} AS place FROM {EVERYTHING} ORDER BY shard, row"
        found, places = [np.empty(0, bool)], [np.empty(0, np.int64)]

        def read() -> Iterator[list[str]]:
            for batch in stream_query(pool, f"SELECT caption, place FROM ({query})"):
                column = batch.column("caption")
                found.append(column.is_valid().to_numpy(zero_copy_only=False))
                places.append(batch.column("place").to_numpy())
                yield column.fill_null("").to_pylist()

        num_rows = next(stream_query(pool, f"SELECT count(*) FROM {EVERYTHING}")).column(0)[0].as_py()
        seconds = num_rows * _DIGEST_SECONDS
        digests = [np.empty((0, 2), np.uint64), *work.map(_digest_texts, read(), core_seconds=seconds)]
        return np.concatenate(digests), np.concatenate(found), np.concatenate(places)

    def _hash(
        self, pool: "DuckDBPyRelation", texts: "_Distinct", work: "PoolWork"
    ) -> tuple[np.ndarray, Shingles, Sketches]:
        """Return of the distinct captions the band keys (bands x texts, by place) and shingles (by row) on disk, and sketches (by place)."""
        count = len(texts.rows)
        keys = np.memmap(work.folder / "keys.bin", np.uint64, "w+", shape=(self.num_bands, max(1, count)))[:, :count]
        lengths = np.zeros(count, np.int64)
        bits = np.zeros((count, 2), np.uint64)
        path = work.folder / "shingles.bin"
        start = 0
        hash_texts = functools.partial(_hash_texts, self.num_bands, self.num_rows)
        with path.open("wb") as file:
            for found, marks, values, sizes in work.map(
                hash_texts, texts.read(pool), core_seconds=count * _HASH_SECONDS
            ):
                stop = start + len(sizes)
                keys[:, texts.place_of[start:stop]] = found.T
                bits[texts.place_of[start:stop]] = marks
                lengths[start:stop] = sizes
                file.write(values.tobytes())
                start = stop
        values = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.empty(0, np.uint32)
        return keys, Shingles(values, np.cumsum(lengths)), Sketches(bits, lengths[texts.number_at])

    def _pairs(
        self, keys: np.ndarray, shingles: Shingles, sketches: Sketches, texts: "_Distinct"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of distinct captions, by place, that are similar enough."""
        lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for left, right in candidates(keys, functools.partial(sketches.may_reach, self.threshold)):
            similar = jaccard(shingles, texts.number_at[left], texts.number_at[right]) >= self.threshold
            lefts.append(left[similar])
            rights.append(right[similar])
        return np.concatenate(lefts), np.concatenate(rights)

    def _write(
        self, pool: "DuckDBPyRelation", representatives: np.ndarray, similarity: np.ndarray
    ) -> Iterator[pa.Table]:
        sizes = np.bincount(representatives[representatives >= 0], minlength=len(representatives))
        uids = _read_uids(pool, representatives)
        start = 0
        for batch in stream(pool, "uid, status, error_message"):
            stop = start + batch.num_rows
            mine = representatives[start:stop]
            is_lost = mine < 0
            is_copy = mine != np.arange(start, stop)
            own = batch.column("uid").to_pylist()
            groups = [
                uids[other] if copy and other >= 0 else uid
                for uid, other, copy in zip(own, mine.tolist(), is_copy.tolist(), strict=True)
            ]
            yield pa.table({
                "uid": batch.column("uid"),
                "caption_dedup_group": pa.array(groups, pa.string(), mask=is_lost),
                "caption_dedup_num_copies": pa.array(sizes[np.maximum(mine, 0)].astype(np.int32), mask=is_lost),
                "is_caption_near_duplicate": pa.array(is_copy, mask=is_lost),
                "caption_dedup_similarity": pa.array(similarity[start:stop], mask=is_lost),
                "error": missing_errors(batch, is_lost, "alt_text"),
            })
            start = stop


class _Distinct:
    """The first rows of equal captions: numbered by row, and placed by preference."""

    def __init__(self, rows: np.ndarray, places: np.ndarray) -> None:
        self.rows = rows
        self.number_at = np.argsort(places[rows], kind="stable")  # by place: the number
        self.place_of = np.empty(len(rows), np.int64)  # by number: the place
        self.place_of[self.number_at] = np.arange(len(rows))
        self.rows_by_place = rows[self.number_at]

    def read(self, pool: "DuckDBPyRelation") -> Iterator[list[str]]:
        """Yield their captions in the order of their numbers."""
        start = 0
        for batch in stream(pool, "alt_text"):
            first, last = np.searchsorted(self.rows, [start, start + batch.num_rows])
            yield batch.column(0).take(pa.array(self.rows[first:last] - start)).to_pylist()
            start += batch.num_rows


# Captions normalised and hashed at once: their arrays stay in the processor's cache.
_HASH_ROWS = 2048
_HASH_SECONDS = 30e-6  # of a caption, measured
_DIGEST_SECONDS = 10e-6


def _digest_texts(captions: list[str]) -> np.ndarray:
    """Return the digests of captions as they are compared."""
    return np.concatenate([
        np.empty((0, 2), np.uint64),
        *(normalise(captions[first : first + _HASH_ROWS]).digests() for first in range(0, len(captions), _HASH_ROWS)),
    ])


def _hash_texts(
    num_bands: int, num_rows: int, captions: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the band keys, the sketches, the shingles and their numbers of captions."""
    keys, bits = [np.empty((0, num_bands), np.uint64)], [np.empty((0, 2), np.uint64)]
    values, lengths = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    for first, last in pairwise([*range(0, len(captions), _HASH_ROWS), len(captions)]):
        shingles = shingle(normalise(captions[first:last]))
        keys.append(band_keys(shingles, num_bands, num_rows))
        bits.append(sketch(shingles))
        values.append(shingles.values)
        lengths.append(shingles.lengths)
    return np.concatenate(keys), np.concatenate(bits), np.concatenate(values), np.concatenate(lengths)


def _lead_equal(digests: np.ndarray, has_caption: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return for each row with a caption the most preferred row whose normalised caption is the same; itself where it has none."""
    leaders = np.arange(len(digests))
    rows = np.flatnonzero(has_caption)
    rows = rows[np.lexsort((places[rows], digests[rows, 1], digests[rows, 0]))]
    ordered = digests[rows]
    is_first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(rows)]
    leaders[rows] = rows[np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))]
    return leaders


def _read_uids(pool: "DuckDBPyRelation", representatives: np.ndarray) -> dict[int, str]:
    """Return the uids of rows that stand for others."""
    rows = np.arange(len(representatives))
    needed = np.unique(representatives[(representatives >= 0) & (representatives != rows)])
    uids: dict[int, str] = {}
    start = 0
    for batch in stream(pool, "uid"):
        first, last = np.searchsorted(needed, [start, start + batch.num_rows])
        mine = needed[first:last]
        uids.update(zip(mine.tolist(), batch.column(0).take(pa.array(mine - start)).to_pylist(), strict=True))
        start += batch.num_rows
    return uids
