"""Counts and sums of rows by a number that tells which selections of a sweep keep them, taken in one query and added up per selection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.catalog import Catalog

# Values of a column that are counted apart; the rest is one.
MAX_VALUES = 30
NULL, OTHERS = "(null)", "(others)"


@dataclass(frozen=True, eq=False)
class Counts:
    """Rows by key (down) and value (across) of a column, the most frequent values first."""

    values: tuple[str, ...]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """What the rows of each key add up to; `keep` in the methods says which keys count."""

    keys: npt.NDArray[np.uint64]  # rising
    num_rows: npt.NDArray[np.int64]
    sums: Mapping[str, npt.NDArray[np.float64]]
    counts: Mapping[str, Counts]

    def count(self, keep: npt.NDArray[np.bool_]) -> int:
        """Return the rows."""
        return int(self.num_rows[keep].sum())

    def mean(self, number: int, keep: npt.NDArray[np.bool_]) -> float | None:
        """Return the mean of a measure over the rows that have a value; None where none has."""
        count = float(self.sums[f"count_{number}"][keep].sum())
        return float(self.sums[f"sum_{number}"][keep].sum()) / count if count else None

    def effective_samples(self, keep: npt.NDArray[np.bool_]) -> float | None:
        """Return (sum w)^2 / sum w^2; None where a weight is no finite number, or all are 0."""
        if not self.count(keep):
            return 0.0
        return _effective(*(float(self.sums[name][keep].sum()) for name in ("weight", "square")))

    def values(self, name: str, keep: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Return the rows of each value of a column."""
        found = self.counts[name]
        return dict(zip(found.values, found.rows[keep].sum(axis=0).tolist(), strict=True))

    def overlaps(self, keeps: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the rows that each pair of selections keeps both; `keeps` is selections by keys."""
        # Doubles add integers up to 2^53 without loss, and are multiplied much faster.
        return np.asarray(((keeps * self.num_rows) @ keeps.T.astype(np.float64)).round().astype(np.int64))


def tally(catalog: Catalog, source: str, num_means: int, columns: Sequence[str]) -> Tally:
    """Count the rows of a query by its column `sweep_key`.

    It has `weight`, `mean_0` and on (null where a row has no value), and `share_0` and on: texts, never null, which `columns` name.
    """
    sums = [("num_rows", "count(*)"), ("weight", "sum(weight)"), ("square", "sum(weight * weight)")]
    for number in range(num_means):
        sums += [(f"sum_{number}", f"sum(mean_{number})"), (f"count_{number}", f"count(mean_{number})")]
    shares = [f"share_{number}" for number in range(len(columns))]
    sets = ", ".join(["(sweep_key)", *(f"(sweep_key, {share})" for share in shares)])
    wanted = ["sweep_key", *shares, *(f"{sql} AS {name}" for name, sql in sums)]
    wanted.append(
        f"{' + '.join(f'(1 - grouping({share})) * {1 + n}' for n, share in enumerate(shares)) or '0'} AS kind"
    )
    order = ", ".join(["kind", "sweep_key", *shares])
    query = f"SELECT {', '.join(wanted)} FROM ({source}) GROUP BY GROUPING SETS ({sets}) ORDER BY {order}"
    with catalog.translate():
        table = catalog.connection.sql(query).to_arrow_table()
    kinds = table["kind"].to_numpy()
    total = table.filter(pa.array(kinds == 0))
    keys = total["sweep_key"].to_numpy().astype(np.uint64)
    return Tally(
        keys=keys,
        num_rows=total["num_rows"].to_numpy(),
        sums={name: total[name].cast(pa.float64()).fill_null(0.0).to_numpy() for name, _ in sums[1:]},
        counts={
            name: _cross(table.filter(pa.array(kinds == number + 1)), f"share_{number}", keys)
            for number, name in enumerate(columns)
        },
    )


def effective_samples(weights: npt.NDArray[np.float64]) -> float | None:
    """Return (sum w)^2 / sum w^2 of some rows; None where a weight is no finite number, or all are 0."""
    return _effective(float(weights.sum()), float((weights**2).sum())) if len(weights) else 0.0


def _effective(total: float, square: float) -> float | None:
    return total**2 / square if np.isfinite(square) and square else None


def _cross(table: pa.Table, share: str, keys: npt.NDArray[np.uint64]) -> Counts:
    """Return rows by key and value, the most frequent values first and apart; the rest is one."""
    encoded = table[share].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    rows = table["num_rows"].to_numpy()
    totals = np.bincount(codes, rows, minlength=len(names))
    order = sorted(range(len(names)), key=lambda code: (-totals[code], names[code]))
    shown = order[:MAX_VALUES] if len(order) > MAX_VALUES + 1 else order
    columns = np.full(len(names), len(shown))
    columns[shown] = np.arange(len(shown))
    matrix = np.zeros((len(keys), len(shown) + 1), np.int64)
    np.add.at(matrix, (np.searchsorted(keys, table["sweep_key"].to_numpy().astype(np.uint64)), columns[codes]), rows)
    values = tuple(names[code] for code in shown)
    return Counts(values, matrix[:, :-1]) if len(shown) == len(order) else Counts((*values, OTHERS), matrix)
