"""Numeric columns as arrays in memory: a threshold over a million rows is counted in a millisecond, to the row as SQL would."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.catalog import SAMPLES, Catalog
from curate.expression import quote_name
from pipelines.browse.evaluator import Mask
from schemas.errors import InputError

NUM_BINS = 48
# Values outside these quantiles do not stretch a scale to more than so many times what it would be without them.
_TAILS = (0.002, 0.998)
_STRETCH = 3.0
# All columns together; the one not used for longest goes first.
_MAX_BYTES = 1 << 30
_INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
_NUMERIC = _INTEGERS | {"FLOAT", "DOUBLE"}
_TABLE = "number"
# Where a row lies; nobody wants a slider of it.
_HIDDEN = frozenset({"samples.shard", "samples.row"})

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Range:
    """The rows whose value lies between two bounds, both included; None is no bound. A null lies in no range that has a bound."""

    column: str
    low: Decimal | None = None
    high: Decimal | None = None

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Read `label.column:low..high`; raises InputError where it is not of that form."""
        column, _, bounds = text.rpartition(":")
        low, dots, high = bounds.partition("..")
        try:
            parsed = [Decimal(part) if part else None for part in (low, high)]
        except InvalidOperation:
            parsed = []
        if not column or not dots or not parsed or any(part is not None and not part.is_finite() for part in parsed):
            raise InputError(f"range {text[:200]!r} is not COLUMN:LOW..HIGH, such as b32.clip_score:0.2..0.4")
        return cls(column=column, low=parsed[0], high=parsed[1])

    def to_sql(self) -> str:
        """Return the same rows as a rule of a selection."""
        table, _, column = self.column.partition(".")
        name = ".".join(part if part.isidentifier() else quote_name(part) for part in (table, column))
        parts = [
            f"{name} {sign} {bound:f}" for sign, bound in ((">=", self.low), ("<=", self.high)) if bound is not None
        ]
        return " AND ".join(parts) or "true"


@dataclass(frozen=True, kw_only=True)
class Column:
    """The values of a column; `valid` is None where no row is null."""

    values: Floats
    valid: Mask | None
    is_integer: bool

    def within(self, range: Range) -> Mask:
        """Return which rows lie in a range. As in DuckDB NaN is above every number, and FLOATs are compared as FLOATs."""
        kind = self.values.dtype.type
        mask = np.ones(len(self.values), np.bool_) if self.valid is None else self.valid.copy()
        if range.low is not None:
            mask &= ~(self.values < kind(range.low))
        if range.high is not None:
            mask &= self.values <= kind(range.high)
        if range.low is None and range.high is None:
            mask[:] = True
        return mask

    def order(self, *, descending: bool) -> npt.NDArray[np.int64]:
        """Return the positions by value, nulls and NaN last, equal values in pool order."""
        keys = -self.values if descending else self.values.copy()
        if self.valid is not None:
            keys[~self.valid] = np.nan
        return np.argsort(keys, kind="stable")


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """What a slider shows: a scale and how many of the finite values lie in each of its bins.

    The scale is the whole extent, or where a few values would stretch it, what 99.6 % of the rows need; what lies beyond counts in its ends.
    """

    name: str
    is_integer: bool
    num_values: int  # neither null nor NaN nor infinite
    num_rows: int
    least: float
    most: float
    low: float  # of the scale
    high: float
    bins: tuple[int, ...]


class Numbers:
    """The numeric columns of a pool, loaded when first asked for; safe to use from several threads."""

    def __init__(self, find_catalog: Callable[[], Catalog], lock: threading.RLock) -> None:
        """`find_catalog` returns the catalog that is open at that moment, `lock` guards its connection."""
        self._find_catalog = find_catalog
        self._lock = lock
        self._loaded: OrderedDict[str, Column] = OrderedDict()
        self._summaries: dict[str, ColumnSummary] = {}
        self._types = _find_types(find_catalog())

    @property
    def names(self) -> tuple[str, ...]:
        """The numeric columns as `label.column`; those of samples are `samples.column`."""
        return tuple(self._types)

    def load(self, name: str) -> Column:
        """Return a column; raises InputError where there is no numeric column of that name."""
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name]
            if name not in self._types:
                near = self._find_catalog().suggest(name)
                raise InputError(f"this pool has no numeric column {name[:200]!r}{near}")
            self._loaded[name] = column = self._read(name)
            while len(self._loaded) > 1 and sum(c.values.nbytes for c in self._loaded.values()) > _MAX_BYTES:
                self._loaded.popitem(last=False)
            return column

    def summarise(self, name: str) -> ColumnSummary:
        """Return what a slider shows of a column; 0.1 s per million rows the first time."""
        if name not in self._summaries:
            self._summaries[name] = _summarise(name, self.load(name))
        return self._summaries[name]

    def _read(self, name: str) -> Column:
        label, _, column = name.partition(".")
        kind = "FLOAT" if self._types[name] == "FLOAT" else "DOUBLE"
        labels = [] if label == SAMPLES else [label]
        catalog = self._find_catalog()
        catalog.tabulate(_TABLE, [f"{quote_name(label)}.{quote_name(column)}::{kind} AS value"], labels)
        connection = catalog.connection
        found: pa.ChunkedArray = connection.sql(f"SELECT value FROM {_TABLE}").to_arrow_table()["value"]
        connection.execute(f"DROP TABLE {_TABLE}")
        valid = None if found.null_count == 0 else pc.is_valid(found).to_numpy()
        values = pc.fill_null(found, 0.0).to_numpy().copy()
        return Column(values=values, valid=valid, is_integer=self._types[name] in _INTEGERS)


def _find_types(catalog: Catalog) -> dict[str, str]:
    """Return DuckDB's type of every numeric column by `label.column`."""
    found = {}
    for table in (SAMPLES, *catalog.label_columns):
        labels = [] if table == SAMPLES else [table]
        relation = catalog.connection.sql(f"SELECT {quote_name(table)}.* FROM {catalog.source(labels, 0, 1)}")
        for column, kind in zip(relation.columns, relation.types, strict=True):
            name = f"{table}.{column}"
            if str(kind) in _NUMERIC and name not in _HIDDEN:
                found[name] = str(kind)
    return found


def _summarise(name: str, column: Column) -> ColumnSummary:
    usable = np.isfinite(column.values)
    if column.valid is not None:
        usable &= column.valid
    values = column.values[usable].astype(np.float64)
    least, most = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    low, high = _scale(values, least, most)
    num_bins = min(NUM_BINS, int(high - low) + 1) if column.is_integer else NUM_BINS
    counts = (
        np.histogram(np.clip(values, low, high), num_bins, (low, high))[0] if len(values) else np.zeros(0, np.int64)
    )
    return ColumnSummary(
        name=name,
        is_integer=column.is_integer,
        num_values=len(values),
        num_rows=len(column.values),
        least=least,
        most=most,
        low=low,
        high=high,
        bins=tuple(counts.tolist()),
    )


def _scale(values: npt.NDArray[np.float64], least: float, most: float) -> tuple[float, float]:
    """Return the ends of a slider's scale."""
    if not len(values):
        return least, most
    low, high = (float(bound) for bound in np.quantile(values, _TAILS))
    return (low, high) if low < high and most - least > _STRETCH * (high - low) else (least, most)
