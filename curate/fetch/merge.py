"""Which rows of a list are first of their uid, and how often each occurs: exact, in list order, in bounded memory.

Rows go to one of 256 buckets by the first byte of their uid; each bucket is then sorted on its own.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import numpy as np

from schemas.errors import InputError

_NUM_BUCKETS = 256
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("pair", "<u8"), ("row", "<i8")])
_BUFFERED_ROWS = 1_000_000
# The row number of uids that the pool holds already: it sorts before every row of the list.
_KNOWN_ROW = -1


@dataclass(frozen=True)
class MergePlan:
    """`kept[row]` tells the first row of each new uid; `occurrences` how many rows it stands for."""

    kept: np.ndarray
    num_known: int
    repeated_rows: np.ndarray  # sorted
    repeated_counts: np.ndarray

    @property
    def num_rows(self) -> int:
        """The rows of the list."""
        return len(self.kept)

    @property
    def num_kept(self) -> int:
        """The rows that stay."""
        return int(self.kept.sum())

    def occurrences(self, rows: np.ndarray) -> np.ndarray:
        """Return how many rows of the list each of these kept rows stands for."""
        counts = np.ones(len(rows), dtype=np.int32)
        if len(self.repeated_rows):
            found = np.minimum(np.searchsorted(self.repeated_rows, rows), len(self.repeated_rows) - 1)
            hit = self.repeated_rows[found] == rows
            counts[hit] = self.repeated_counts[found[hit]]
        return counts


class Merger:
    """Collects uids in list order and finds the copies; a context manager that holds temporary files."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._buckets: list[IO[bytes] | None] = [None] * _NUM_BUCKETS
        self._buffer: list[np.ndarray] = []
        self._num_buffered = 0
        self._num_rows = 0

    def __enter__(self) -> "Merger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, uids: Sequence[str], pairs: Sequence[str]) -> None:
        """Add the next rows: their uids, and the identity of their (url, alt-text)."""
        rows = np.arange(self._num_rows, self._num_rows + len(uids), dtype=np.int64)
        self._num_rows += len(uids)
        self._append(uids, pairs, rows)

    def add_known(self, uids: Sequence[str]) -> None:
        """Add uids that the pool holds already."""
        self._append(uids, None, np.full(len(uids), _KNOWN_ROW, dtype=np.int64))

    def finish(self) -> MergePlan:
        """Find the copies."""
        self._spill()
        kept = np.zeros(self._num_rows, dtype=bool)
        num_known = 0
        rows: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for file in self._buckets:
            if file is None:
                continue
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=_RECORD)
            first, count, known = _group(records)
            kept[first] = True
            num_known += known
            rows.append(first[count > 1])
            counts.append(count[count > 1])
        repeated = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        times = np.concatenate(counts) if counts else np.empty(0, dtype=np.int64)
        order = np.argsort(repeated)
        return MergePlan(kept, num_known, repeated[order], times[order].astype(np.int32))

    def _append(self, uids: Sequence[str], pairs: Sequence[str] | None, rows: np.ndarray) -> None:
        if not uids:
            return
        records = np.empty(len(uids), dtype=_RECORD)
        identity = _halves(uids)
        records["high"], records["low"] = identity[:, 0], identity[:, 1]
        records["pair"] = 0 if pairs is None else _halves(pairs)[:, 0]
        records["row"] = rows
        self._buffer.append(records)
        self._num_buffered += len(records)
        if self._num_buffered >= _BUFFERED_ROWS:
            self._spill()

    def _spill(self) -> None:
        if not self._buffer:
            return
        records = np.concatenate(self._buffer)
        bucket = (records["high"] >> np.uint64(56)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(_NUM_BUCKETS + 1))
        for index in range(_NUM_BUCKETS):
            part = records[order[bounds[index] : bounds[index + 1]]]
            if len(part):
                file = self._buckets[index]
                if file is None:
                    file = self._buckets[index] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
                file.write(part.tobytes())
        self._buffer = []
        self._num_buffered = 0


def _halves(uids: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(uids)), dtype=">u8").reshape(-1, 2)


def _group(records: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the first row and the count of every new uid of a bucket, and how many of its uids the pool knew."""
    records = records[np.lexsort((records["row"], records["low"], records["high"]))]
    is_start = np.ones(len(records), dtype=bool)
    is_start[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    group = np.cumsum(is_start) - 1
    starts = np.flatnonzero(is_start)
    counts = np.diff(np.append(starts, len(records)))
    first = records["row"][starts]
    is_known = first == _KNOWN_ROW
    # A uid that a list brings must mean one pair: merging two would lose one of them.
    differs = (records["pair"] != records["pair"][starts][group]) & ~is_known[group]
    if differs.any():
        record = records[np.flatnonzero(differs)[0]]
        raise InputError(
            f"uid {int(record['high']):016x}{int(record['low']):016x} stands for different urls or captions (row {int(record['row'])}); "
            "correct the list, or make identities from url and alt-text with --uid-column ''"
        )
    from_list = np.add.reduceat((records["row"] != _KNOWN_ROW).astype(np.int64), starts) if len(starts) else counts
    return first[~is_known], counts[~is_known], int((is_known & (from_list > 0)).sum())
