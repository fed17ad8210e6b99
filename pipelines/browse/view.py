"""A pool as the page sees it: counts and pages of any query, one sample in full, and what is decided about it.

Every condition is a mask over the rows: that of the filter comes from SQL once and is kept, thresholds are compared in memory, what a
selection did and what was decided are one byte per row. So a slider costs a few milliseconds per million rows whatever else is set.
"""

import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from curate.catalog import SAMPLES, Catalog
from curate.operators.manual import DECISIONS
from curate.store import Pool
from pipelines.browse.decisions import LABEL, Decisions
from pipelines.browse.evaluator import DEFAULT_SECONDS, Evaluator, Mask
from pipelines.browse.numbers import Numbers
from pipelines.browse.query import DECIDED, RANDOM, UNDECIDED, Query
from pipelines.browse.recent import Recent
from pipelines.browse.rows import Place, Rows
from pipelines.browse.verdicts import Verdicts, read_verdicts
from pipelines.why import Explanation, explain, find_selections
from schemas.errors import InputError, WinnowError

logger = logging.getLogger(__name__)

TEXT_SORTS = ("url", "alt_text")
# Decisions become an annotation when nobody has decided anything for so long; on the disk they are at once.
PUBLISH_SECONDS = 2.0
_MAX_MASKS = 32
_MAX_ORDERS = 8
_MAX_RESULTS = 4
_SEED = 0

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many rows a query has; and by outcome and by decision how many it would have, were that the one chosen."""

    total: int
    found: int
    outcomes: Mapping[str, int]
    decisions: Mapping[str, int]


class View:
    """An open pool; safe to use from several threads. Close it, and what was decided is in the annotation."""

    def __init__(self, pool: Pool, *, filter_seconds: float = DEFAULT_SECONDS) -> None:
        """Read the texts of every row: about two seconds per million."""
        self.pool = pool
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="winnow-browse-")
        self.catalog = Catalog(pool, sandboxed=True)
        self.rows = Rows(self.catalog, self._folder.name)
        self.numbers = Numbers(lambda: self.catalog, self._lock)
        self.selections = tuple(folder.removeprefix("selections/") for folder in pool.selections())
        self._decisions = Decisions(pool)
        self._codes = self._code(self._decisions.all())
        self._evaluator = Evaluator(pool, len(self.rows), self._folder.name, seconds=filter_seconds)
        self._generation = 0
        self._version = 0  # of the decisions
        self._verdicts: dict[str, Verdicts] = {}
        self._masks: Recent[Mask] = Recent(_MAX_MASKS)
        self._orders: Recent[Positions] = Recent(_MAX_ORDERS)
        self._results: Recent[Positions] = Recent(_MAX_RESULTS)
        self._timer: threading.Timer | None = None
        self._is_dirty = not self._decisions.is_published()
        if self._is_dirty:  # the last browser was killed before it came to that
            self.publish()

    def close(self) -> None:
        """Publish the decisions and end the process that evaluates filters."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            try:
                if self._is_dirty:
                    self._decisions.publish()
                    self._is_dirty = False
            finally:
                self.catalog.close()
                self._evaluator.close()
                self._folder.cleanup()

    def count(self, query: Query) -> Counts:
        """Count the rows of a query, exactly."""
        base = self._base(query)
        by_outcome = self._outcome(query)
        by_decision = self._decision(query)
        verdicts = self.verdicts(query.selection) if query.selection else None
        without = base if by_outcome is None else base & by_outcome
        return Counts(
            total=len(self.rows),
            found=int(np.count_nonzero(without if by_decision is None else without & by_decision)),
            outcomes=verdicts.count(base if by_decision is None else base & by_decision) if verdicts else {},
            decisions=_count_codes(self._codes[without]),
        )

    def find(self, query: Query) -> Positions:
        """Return the positions of a query's rows in its order."""
        return self._results.get((query, self._version), lambda: self._find(query))

    def describe(self, positions: Sequence[int], query: Query) -> list[dict[str, Any]]:
        """Return what a grid shows of rows."""
        verdicts = self.verdicts(query.selection) if query.selection else None
        column = self.numbers.load(query.sort) if query.sort in self.numbers.names else None
        described = []
        for position, row in zip(positions, self.rows.take(positions), strict=True):
            value = None
            if column is not None and (column.valid is None or column.valid[position]):
                value = float(column.values[position])
            described.append({
                **row,
                "position": position,
                "decision": self.decision(position),
                "outcome": verdicts.outcome(position) if verdicts else None,
                "sort_value": value if value is None or np.isfinite(value) else str(value),
            })
        return described

    def explain(self, position: int) -> Explanation:
        """Return everything that the pool knows of a sample."""
        folders = self.pool.selections()
        place = self.rows.place(position)
        with self._lock:
            # From the shard alone, not through `sql`: that would look for the row in all of them.
            source = self.catalog.source([], place.shard_position, place.shard_position + 1)
            query = f"SELECT * FROM {source} WHERE {SAMPLES}.row = {place.row}"
            (sample,) = self.catalog.connection.sql(query).to_arrow_table().to_pylist()
            return explain(self.catalog, sample, folders)

    def place(self, position: int) -> Place:
        """Return where a row lies."""
        return self.rows.place(position)

    def locate(self, uid: str) -> int:
        """Return a sample's position; raises InputError where the pool has no such sample."""
        found = self.rows.find([uid])
        if uid not in found:
            raise InputError(f"the pool has no sample {uid[:64]!r}; it may be from another pool")
        return found[uid]

    def decision(self, position: int) -> str | None:
        """Return what was decided about a row."""
        code = int(self._codes[position])
        return DECISIONS[code - 1] if code else None

    def decide(self, positions: Sequence[int], decision: str | None) -> None:
        """Decide about rows, or take it back with None; on the disk when this returns."""
        uids = [str(self.rows.value("uid", position)) for position in positions]
        decided = self._decisions.decide(uids, decision)
        with self._lock:
            # All of them: another browser of the pool may have decided something meanwhile.
            self._codes = self._code(decided)
            self._version += 1
            self._is_dirty = True
            self._schedule()

    def publish(self) -> None:
        """Make the decisions an annotation now, and let filters and explanations see it."""
        with self._lock:
            self._decisions.publish()
            self._is_dirty = False
            self._generation += 1
            before, self.catalog = self.catalog, Catalog(self.pool, sandboxed=True)
            before.close()

    def verdicts(self, selection: str) -> Verdicts:
        """Return what a selection did, by its name or folder; the last one where several have the name."""
        folder = find_selections(self.pool, selection)[-1]
        with self._lock:
            if folder not in self._verdicts:
                self._verdicts[folder] = read_verdicts(self.catalog, folder)
            return self._verdicts[folder]

    def _base(self, query: Query) -> Mask:
        mask = self._filter(query.filter)
        for each in query.ranges:
            inside = self.numbers.load(each.column).within(each)
            mask = inside if mask is None else mask & inside
        return np.ones(len(self.rows), np.bool_) if mask is None else mask

    def _filter(self, text: str) -> Mask | None:
        if not text:
            return None
        is_about_decisions = LABEL in text.lower()
        if is_about_decisions:
            with self._lock:
                if self._is_dirty or LABEL not in self.catalog.labels:
                    self.publish()
        generation = self._generation if is_about_decisions else 0
        return self._masks.get((text, generation), lambda: self._evaluator.evaluate(text, self._generation))

    def _outcome(self, query: Query) -> Mask | None:
        return self.verdicts(query.selection).where(query.outcome) if query.outcome else None

    def _decision(self, query: Query) -> Mask | None:
        if not query.decision:
            return None
        if query.decision == UNDECIDED:
            return np.equal(self._codes, 0)
        if query.decision == DECIDED:
            return np.not_equal(self._codes, 0)
        return np.equal(self._codes, DECISIONS.index(query.decision) + 1)

    def _find(self, query: Query) -> Positions:
        mask = self._base(query)
        for other in (self._outcome(query), self._decision(query)):
            mask = mask if other is None else mask & other
        if not query.sort:
            (positions,) = np.nonzero(mask)
            return positions[::-1] if query.descending else positions
        order = self._orders.get((query.sort, query.descending), lambda: self._order(query))
        return order[mask[order]]

    def _order(self, query: Query) -> Positions:
        if query.sort == RANDOM:
            return np.random.default_rng(_SEED).permutation(len(self.rows))
        if query.sort in TEXT_SORTS:
            direction = "descending" if query.descending else "ascending"
            keys = [(query.sort, direction)]
            found = pc.sort_indices(self.rows.table.select([query.sort]), sort_keys=keys)
            return np.asarray(found.to_numpy()).astype(np.int64)
        return self.numbers.load(query.sort).order(descending=query.descending)

    def _code(self, decided: Mapping[str, str]) -> npt.NDArray[np.uint8]:
        codes = np.zeros(len(self.rows), np.uint8)
        for uid, position in self.rows.find(list(decided)).items() if decided else ():
            codes[position] = DECISIONS.index(decided[uid]) + 1
        return codes

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(PUBLISH_SECONDS, self._publish_later)
        self._timer.daemon = True
        self._timer.start()

    def _publish_later(self) -> None:
        with self._lock:
            if not self._is_dirty:
                return
            try:
                self.publish()
            except (WinnowError, OSError) as error:
                # The decisions themselves are safe; the next one, or the end of the server, tries again.
                logger.warning("decisions are not in the annotation yet error=%s", error)


def _count_codes(codes: npt.NDArray[np.uint8]) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(DECISIONS) + 1).tolist()
    return {UNDECIDED: counts[0], **dict(zip(DECISIONS, counts[1:], strict=True))}
