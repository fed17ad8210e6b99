"""Near copies of a picture within the pool, by perceptual hash and colours."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.colours import Layouts
from curate.grouping import star_groups
from curate.hamming import distance, near_pairs, search_seconds
from curate.operator import Operator, PoolOperator
from curate.operators.colour_layout import ColourLayout
from curate.operators.perceptual_hash import MIN_DETAIL_BITS, MIRROR, PerceptualHash
from curate.pool_rows import missing_errors, stream, stream_query
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_ORDERS = {
    "largest": "original_width::BIGINT * original_height DESC NULLS LAST, uid",
    "smallest_uid": "uid",
}
_NO_GROUP = np.int64(-1)


@dataclass(frozen=True, kw_only=True)
class NearDedup(PoolOperator):
    """Near copies of a picture: perceptual hashes that differ in at most `max_distance` of 64 bits, and the same colours; exact.

    near_dedup_group         uid of the row that stands for the group: every member is within `max_distance` of it, so that groups do
                             not chain unrelated pictures
    near_dedup_num_copies    rows of the group, 1 and up
    is_near_duplicate        false for the row that stands for the group, true for the others: `NOT is_near_duplicate` keeps one of each
    near_dedup_distance      bits in which the row differs from that one, 0 to `max_distance`
    near_dedup_captions      where the row stands for several: their distinct captions, its own first; else null. To train on a picture
                             with the captions of all its copies name `near_dedup.near_dedup_captions[*]` in the caption mixture

    The hash sees brightness only, so drawings, flags and maps of the same shapes share theirs: two pictures are copies only where the
    colours of their 8 x 8 cells (colour_layout) differ by at most `max_colour_distance` of 255 in the mean as well, brightness aside. 255
    switches that off: do so to find copies that were made grey, or whose colours were shifted.
    `keep` says which row stands for a group: `largest` as downloaded (uid breaks ties), or `smallest_uid`. To keep the best by a score
    instead, cap the group: per_group {by: near_dedup_group, num_samples: 1, order: SCORE}. `flips` also finds mirrored copies. Pictures
    without detail (a hash with fewer than 16 bits set) are nobody's copy. Bits are compared in bands (Norouzi et al. 2012), in memory
    of about 150 bytes per row, and 128 bytes per row on disk.
    """

    name = "near_dedup"
    version = 1
    reads = (
        "image_perceptual_hash",
        "image_colour_layout",
        "original_width",
        "original_height",
        "alt_text",
        "status",
        "error_message",
    )
    writes = pa.schema([
        ("near_dedup_group", pa.string()),
        ("near_dedup_num_copies", pa.int32()),
        ("is_near_duplicate", pa.bool_()),
        ("near_dedup_distance", pa.int32()),
        ("near_dedup_captions", pa.list_(pa.string())),
    ])

    max_distance: int = 6  # bits of 64 in which copies may differ, 0 to 16
    max_colour_distance: float = 2.5  # mean difference of the colours of copies, 0 to 255
    flips: bool = False  # whether a mirrored picture is a copy
    keep: str = "largest"  # largest or smallest_uid

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= 16:
            raise InputError(f"near_dedup max_distance is {self.max_distance}; it must be 0 to 16")
        if not 0 <= self.max_colour_distance <= 255:
            raise InputError(f"near_dedup max_colour_distance is {self.max_colour_distance}; it must be 0 to 255")
        if self.keep not in _ORDERS:
            raise InputError(f"near_dedup keep is {self.keep!r}; it must be one of {', '.join(_ORDERS)}")

    def requires(self) -> tuple[Operator, ...]:
        needed = {"image_perceptual_hash": PerceptualHash(), "image_colour_layout": ColourLayout()}
        return tuple(operator for column, operator in needed.items() if column not in self.bind)

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        hashes, priorities = self._read(pool)
        columns = (batch.column(0) for batch in stream(pool, "image_colour_layout"))
        layouts = Layouts(work.folder / "layouts.bin", columns)
        representatives = self._group(hashes, priorities, layouts, work)
        texts = _read_texts(pool, representatives)
        yield from self._write(pool, hashes, representatives, texts)

    def _read(self, pool: "DuckDBPyRelation") -> tuple[np.ma.MaskedArray[Any, Any], np.ndarray]:
        """Return every row's hash (masked where there is none), and its place in the order of preference, in pool order."""
        rank = f"row_number() OVER (ORDER BY {_ORDERS[self.keep]}) - 1"
        query = f"SELECT shard, row, image_perceptual_hash AS hash, {rank} AS place FROM everything ORDER BY shard, row"
        hashes, masks, places = [], [], []
        for batch in stream_query(pool, f"SELECT hash, place FROM ({query})"):
            column = batch.column("hash")
            masks.append(column.is_null().to_numpy(zero_copy_only=False))
            hashes.append(column.fill_null(0).to_numpy(zero_copy_only=False))
            places.append(batch.column("place").to_numpy())
        if not hashes:
            return np.ma.masked_array(np.empty(0, np.uint64), np.empty(0, bool)), np.empty(0, np.int64)
        found = np.concatenate(hashes).astype(np.uint64)
        return np.ma.masked_array(found, np.concatenate(masks)), np.concatenate(places)

    def _group(
        self, hashes: "np.ma.MaskedArray[Any, Any]", places: np.ndarray, layouts: Layouts, work: "PoolWork"
    ) -> np.ndarray:
        """Return for every row the row that stands for it, -1 where it has no hash; rows are counted in pool order."""
        representatives = np.where(np.ma.getmaskarray(hashes), _NO_GROUP, np.arange(len(hashes)))
        values = np.ma.getdata(hashes)
        rows = np.flatnonzero((representatives >= 0) & (np.bitwise_count(values) >= MIN_DETAIL_BITS))
        # Equal hashes first, of each those of the same colours together: what is left are few of each hash.
        rows = rows[np.lexsort((places[rows], values[rows]))]
        leaders = self._lead_equal(values[rows], rows, layouts)
        best = np.unique(leaders)
        best = best[np.argsort(places[best], kind="stable")]
        left, right = self._pairs(values[best], best, layouts, work)
        number = np.empty(len(values), np.int64)
        number[best] = np.arange(len(best))
        representatives[rows] = best[star_groups(len(best), left, right)[number[leaders]]]
        return representatives

    def _lead_equal(self, values: np.ndarray, rows: np.ndarray, layouts: Layouts) -> np.ndarray:
        """Return for each row, sorted by hash and preference, the first row of its hash that has its colours."""
        leaders = rows.copy()
        starts = np.append(np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)]), len(values))
        for run in np.flatnonzero(np.diff(starts) > 1).tolist():
            part = slice(int(starts[run]), int(starts[run + 1]))
            leaders[part] = layouts.leaders(rows[part], self.max_colour_distance)
        return leaders

    def _pairs(
        self, values: np.ndarray, rows: np.ndarray, layouts: Layouts, work: "PoolWork"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of positions that are copies by hash and by colours."""
        count = len(values)
        seconds = search_seconds(count * (1 + self.flips), self.max_distance)
        map_items = functools.partial(work.map, core_seconds=seconds)
        if not self.flips:
            left, right = near_pairs(values, self.max_distance, map_items=map_items)
            is_copy = layouts.distance(rows[left], rows[right]) <= self.max_colour_distance
            return left[is_copy], right[is_copy]
        left, right = near_pairs(np.concatenate([values, values ^ MIRROR]), self.max_distance, map_items=map_items)
        # Two mirrored ones say what the two originals say.
        left, right = left[left < count], right[left < count]
        distances = layouts.distance(rows[left], rows[right % count], right >= count)
        is_copy = (distances <= self.max_colour_distance) & (left != right % count)
        pairs = np.unique(np.sort(np.stack([left, right % count])[:, is_copy], axis=0), axis=1)
        return pairs[0], pairs[1]

    def _write(
        self,
        pool: "DuckDBPyRelation",
        hashes: "np.ma.MaskedArray[Any, Any]",
        representatives: np.ndarray,
        texts: "_Texts",
    ) -> Iterator[pa.Table]:
        values = np.ma.getdata(hashes)
        there = representatives >= 0
        sizes = np.bincount(representatives[there], minlength=len(values))
        start = 0
        for batch in stream(pool, "uid, status, error_message"):
            stop = start + batch.num_rows
            mine = representatives[start:stop]
            is_lost = mine < 0
            others = np.where(is_lost, 0, mine)
            gaps = distance(values[start:stop], values[others])
            if self.flips:
                gaps = np.minimum(gaps, distance(values[start:stop] ^ MIRROR, values[others]))
            is_copy = mine != np.arange(start, stop)
            uids = batch.column("uid").to_pylist()
            groups = [
                texts.uids[other] if copy else uid
                for uid, other, copy in zip(uids, mine.tolist(), is_copy.tolist(), strict=True)
            ]
            yield pa.table({
                "uid": batch.column("uid"),
                "near_dedup_group": pa.array(groups, pa.string(), mask=is_lost),
                "near_dedup_num_copies": pa.array(sizes[others].astype(np.int32), mask=is_lost),
                "is_near_duplicate": pa.array(is_copy, mask=is_lost),
                "near_dedup_distance": pa.array(gaps.astype(np.int32), mask=is_lost),
                "near_dedup_captions": pa.array(
                    [texts.captions.get(row) for row in range(start, stop)], pa.list_(pa.string())
                ),
                "error": missing_errors(batch, is_lost, "image_perceptual_hash"),
            })
            start = stop


@dataclass(frozen=True)
class _Texts:
    """By row: the uids of those that stand for others, and the distinct captions of their groups."""

    uids: dict[int, str | None]
    captions: dict[int, list[str]]


def _read_texts(pool: "DuckDBPyRelation", representatives: np.ndarray) -> _Texts:
    rows = np.flatnonzero((representatives >= 0) & (representatives != np.arange(len(representatives))))
    is_needed = np.zeros(len(representatives), bool)
    is_needed[rows] = is_needed[representatives[rows]] = True
    uids: dict[int, str | None] = {-1: None}
    captions: dict[int, list[str]] = {}
    members: dict[int, list[str]] = {}
    start = 0
    for batch in stream(pool, "uid, alt_text"):
        needed = np.flatnonzero(is_needed[start : start + batch.num_rows])
        chosen = batch.take(pa.array(needed))
        for row, uid, caption in zip((needed + start).tolist(), *chosen.to_pydict().values(), strict=True):
            stands_for_it = int(representatives[row])
            if row == stands_for_it:
                uids[row] = uid
            # Its own caption goes first, wherever the row lies among its copies.
            found = captions if row == stands_for_it else members
            if caption:
                found.setdefault(stands_for_it, []).append(caption)
            else:
                captions.setdefault(stands_for_it, [])
        start += batch.num_rows
    for row, others in members.items():
        captions[row] = list(dict.fromkeys([*captions.get(row, []), *others]))
    return _Texts(uids, {row: found for row, found in captions.items() if found})
