"""MetaCLIP's balance: captions that name only frequent concepts are kept less often."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curate.operator import PoolOperator
from curate.pool_rows import draw_sql, stream, to_uniform
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

# Steps of the search for t: each halves an interval of factor two at the start, so that t is right to nine digits.
_STEPS = 60
_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ConceptBalance(PoolOperator):
    """The probability of keeping a caption so that no concept has more than about `t` (MetaCLIP, arXiv 2309.16671, algorithm 1).

    concept_balance_probability   1 - prod(1 - p) over the caption's entries, with p = min(1, t / rows that have the entry); 0 to 1, 0
                                  for a caption without entries
    is_concept_balance_kept       one draw with that probability, a function of `seed` and uid

    Reads `metadata_matches` of metadata_match (bind it where that has a label of its own). `t` is 20,000 for MetaCLIP's 400 million,
    170,000 for 2.5 billion; `target_size` finds the t at which so many rows are expected to stay. Counts are of rows with a picture
    only: balance after download and deduplication, or raise t. A long caption names many entries and nearly always stays. Two passes;
    about 1 s per million rows.
    """

    name = "concept_balance"
    version = 1
    reads = ("metadata_matches", "status", "error_message")
    writes = pa.schema([("concept_balance_probability", pa.float64()), ("is_concept_balance_kept", pa.bool_())])

    t: float = 20_000  # rows that an entry may have before its share is cut
    target_size: int = 0  # rows to expect; 0: as `t` says
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        if not self.t > 0:
            raise InputError(f"concept_balance t is {self.t}; it must be above 0")
        if self.target_size < 0:
            raise InputError(f"concept_balance target_size is {self.target_size}; it must be 0 or more")

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        matches = _Matches(pool, work.folder)
        t = self._find_t(matches) if self.target_size else self.t
        keep = entry_probabilities(matches.counts, t)
        start = 0
        columns = f"uid, status, error_message, {draw_sql(self.seed)} AS draw"
        for batch in stream(pool, columns):
            stop = start + batch.num_rows
            probability = matches.probability(keep, start, stop)
            is_lost = matches.is_lost[start:stop]
            errors = [
                f"no image: {message or status}"
                for status, message in zip(
                    batch.column("status").to_pylist(), batch.column("error_message").to_pylist(), strict=True
                )
            ]
            yield pa.table({
                "uid": batch.column("uid"),
                "concept_balance_probability": pa.array(probability, mask=is_lost),
                "is_concept_balance_kept": pa.array(
                    to_uniform(batch.column("draw").to_numpy()) < probability, mask=is_lost
                ),
                "error": pa.array(errors, pa.string(), mask=~is_lost),
            })
            start = stop

    def _find_t(self, matches: "_Matches") -> float:
        def expected(t: float) -> float:
            keep = entry_probabilities(matches.counts, t)
            return sum(
                float(matches.probability(keep, start, start + _BLOCK_ROWS).sum())
                for start in range(0, matches.num_rows, _BLOCK_ROWS)
            )

        return find_t(expected, self.target_size, float(matches.counts.max(initial=1)))


def entry_probabilities(counts: np.ndarray, t: float) -> np.ndarray:
    """Return min(1, t / count) for each entry; 1 for one that nobody has."""
    return np.asarray(np.minimum(1.0, t / np.maximum(counts, 1)))


def find_t(expected: Callable[[float], float], target_size: int, largest_count: float) -> float:
    """Return the t at which `expected(t)` rows, which rises with t, are `target_size`; the largest count where even all are fewer."""
    low, high = 0.0, largest_count
    if expected(high) <= target_size:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if expected(middle) < target_size:
            low = middle
        else:
            high = middle
    return high


class _Matches:
    """Every row's entries, on disk, and how many rows have each entry."""

    def __init__(self, pool: "DuckDBPyRelation", folder: Path) -> None:
        path = folder / "entries.bin"
        lengths, lost = [np.empty(0, np.int64)], [np.empty(0, bool)]
        self.counts = np.zeros(0, np.int64)
        with path.open("wb") as file:
            for batch in stream(pool, "CASE WHEN status = 'success' THEN metadata_matches END AS matches, status"):
                column = batch.column("matches")
                # `flatten` drops what lies under nulls, as `value_lengths` does not count it.
                entries = column.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
                lengths.append(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
                lost.append(batch.column("status").to_numpy(zero_copy_only=False) != "success")
                found = np.bincount(entries, minlength=len(self.counts))
                found[: len(self.counts)] += self.counts
                self.counts = found
                file.write(entries.tobytes())
        self._ends = np.cumsum(np.concatenate(lengths))
        self.is_lost = np.concatenate(lost)
        self.num_rows = len(self.is_lost)
        is_empty = path.stat().st_size == 0
        self._entries = np.empty(0, np.int32) if is_empty else np.memmap(path, np.int32, "r")

    def probability(self, keep: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return 1 - prod(1 - keep[entry]) for rows `start` to `stop`."""
        ends = self._ends[start:stop]
        first = int(self._ends[start - 1]) if start else 0
        offsets = ends - first
        lengths = np.diff(offsets, prepend=0)
        dropped = 1.0 - keep[self._entries[first : int(ends[-1])]] if len(ends) else np.empty(0)
        probability = np.zeros(len(ends))
        has_some = lengths > 0
        if has_some.any():
            starts = (offsets - lengths)[has_some]
            probability[has_some] = 1.0 - np.multiply.reduceat(dropped, starts)
        return probability
