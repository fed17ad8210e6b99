"""Sweeps: what selections that differ in a threshold or a share would keep, all of them counted in one pass over the columns.

A row is a number: which choices of which axis it passes. Counts, sums and shares are taken per such number, of which there are few, and every
point and every pair of points is added up from those. Where a point has a cut whose rows hang on the rules (a top share of what is left, a
cap per group, a mix, a limit), its rows are found in a table in memory, and no file is read again.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.axis import Axis, Choice, combine
from curate.catalog import SAMPLES, Catalog
from curate.cuts import VERDICT, apply_mix, cut_columns, run_cuts
from curate.predicate import blame, check_expressions, find_labels
from curate.selection import MAX_NAME, MAX_RULES, Selection
from curate.store import Pool
from curate.tally import NULL, effective_samples, tally
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS

MAX_POINTS = 1000
# A row's choices, or the points that keep it where there are cuts, are bits of one number.
_MAX_BITS = 63
_DOWNLOADED = f"{SAMPLES}.status = '{STATUS_SUCCESS}'"
_DEFAULT_SHARES = ("source", "language_code", "language")
_MAX_DEFAULT_MEANS = 6
_NUMBERS = frozenset({"FLOAT", "DOUBLE", "TINYINT", "SMALLINT", "INTEGER", "BIGINT"})


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is varied, over which selection, and what is counted of each point.

    SweepConfig(axes=(read_condition("clip_score > {0.2,0.25,0.3}"),))
    SweepConfig(axes=(read_fractions("b32.clip_score={0.1:0.5:0.1}"),), base=recipe.select, top_of="pool")
    """

    axes: tuple[Axis, ...]  # several make a grid
    base: Selection = field(default_factory=lambda: Selection(name="sweep"))  # its rules, cuts and weight stay
    top_of: str = "rules"  # shares are of the rows that pass the rules that stay; "pool": of all that were downloaded
    shares: tuple[str, ...] = ()  # SQL whose values are counted; empty: source and language, where the pool has them
    means: tuple[str, ...] = ()  # SQL that is averaged; empty: what is varied, and the pool's scores

    def __post_init__(self) -> None:
        if not self.axes:
            raise InputError(
                "nothing is varied; give a condition with values in braces, as 'clip_score > {0.2,0.25,0.3}'"
            )
        if self.top_of not in ("rules", "pool"):
            raise InputError(f"top_of is {self.top_of!r}; it must be rules or pool")
        names = [axis.rule for axis in self.axes]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two conditions are called {twice!r}; give them names with --rule NAME=SQL")
        num_points = math.prod(len(axis.choices) for axis in self.axes)
        if num_points > MAX_POINTS:
            raise InputError(f"the grid has {num_points:,} points; {MAX_POINTS:,} are the most")


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a selection would keep; means are None where no row has a value."""

    values: Mapping[str, str]  # what is varied: its value
    selection: Selection  # `select` makes it
    num_kept: int
    effective_samples: float | None  # as in a selection's report; None where a weight is no finite number
    means: Mapping[str, float | None]
    counts: Mapping[str, Mapping[str, int]]  # column: value: rows kept

    def shares(self, column: str) -> dict[str, float]:
        """Return the share that each value of a column has of the rows kept."""
        return {value: count / self.num_kept for value, count in self.counts[column].items()} if self.num_kept else {}


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepReport:
    """Every point of a sweep; `overlaps[i, j]` rows are kept by both."""

    num_rows: int
    num_downloaded: int
    num_candidates: int  # rows that pass the rules that stay
    points: tuple[Point, ...]
    overlaps: npt.NDArray[np.int64]

    def jaccard(self, first: int, second: int) -> float:
        """Return the rows that two points both keep / the rows that either keeps, 0 to 1; 1 where neither keeps any."""
        both = int(self.overlaps[first, second])
        either = self.points[first].num_kept + self.points[second].num_kept - both
        return both / either if either else 1.0

    def containment(self, first: int, second: int) -> float:
        """Return the share of a point's rows that another keeps too; 1 where it keeps none."""
        kept = self.points[first].num_kept
        return int(self.overlaps[first, second]) / kept if kept else 1.0


def sweep(
    pool: Pool, config: SweepConfig, *, memory_limit: str | None = None, threads: int | None = None
) -> SweepReport:
    """Count what every combination of the choices would keep; writes nothing, and reads the columns once (twice where there are shares).

    Raises as `select` does: `InputError` where an expression is wrong, `MissingColumnsError` where an annotation is incomplete.
    """
    with Catalog(pool, memory_limit=memory_limit, threads=threads, sandboxed=True) as catalog:
        return _Sweep(catalog, config).go()


class _Sweep:
    """One call of `sweep`."""

    def __init__(self, catalog: Catalog, config: SweepConfig) -> None:
        self._catalog = catalog
        self._config = config
        varied = {axis.rule for axis in config.axes}
        rules = {name: sql for name, sql in config.base.rules.items() if name not in varied}
        # The share that is varied takes the place of the one that the base has.
        top = None if any(axis.is_fraction for axis in config.axes) else config.base.top
        self._base = replace(config.base, rules=rules, top=top)
        self._has_cuts = any((self._base.top, self._base.per_group, self._base.mix, self._base.limit))
        self._shares = config.shares or _default_shares(catalog)
        self._means = config.means or self._default_means()
        if len(rules) + len(config.axes) > MAX_RULES:
            raise InputError(
                f"{len(rules)} rules and {len(config.axes)} that vary are too many; {MAX_RULES} are the most"
            )
        self._check_bits()
        self._places = self._expressions()
        self._labels = find_labels(catalog, self._places)

    def go(self) -> SweepReport:
        self._catalog.require_complete(self._labels)
        check_expressions(self._catalog, self._places, self._labels)
        try:
            return self._count()
        except InputError as error:
            raise blame(self._catalog, self._places, self._labels, error) from error

    def _count(self) -> SweepReport:
        axes = [self._find_thresholds(axis) if axis.is_fraction else axis for axis in self._config.axes]
        combinations = combine(axes)
        selections = _name_points(self._base, self._config, axes, combinations)
        if self._has_cuts:
            source, effective = self._apply_cuts(axes, combinations, selections)
            found = tally(self._catalog, source, len(self._means), self._shares)
            keeps = np.array([_has_bits(found.keys, 1 << number) for number in range(len(combinations))])
        else:
            columns = [f"{self._key(axes)} AS sweep_key", f"{self._weight(axes)} AS weight"]
            columns += [f"{sql} AS {name}" for name, sql in self._measures().items()]
            source = self._catalog.over_ranges(columns, self._labels, self._fixed())
            found = tally(self._catalog, source, len(self._means), self._shares)
            keeps = np.array([_has_bits(found.keys, _bits(axes, chosen)) for chosen in combinations])
            effective = [found.effective_samples(keep) for keep in keeps]
        ((num_rows, num_downloaded),) = self._catalog.connection.execute(
            f"SELECT count(*), count(*) FILTER ({_DOWNLOADED}) FROM {SAMPLES}"
        ).fetchall()
        points = tuple(
            Point(
                values=_values(axes, chosen),
                selection=selection,
                num_kept=found.count(keep),
                effective_samples=weight,
                means={name: found.mean(number, keep) for number, name in enumerate(self._means)},
                counts={name: found.values(name, keep) for name in self._shares},
            )
            for chosen, selection, keep, weight in zip(combinations, selections, keeps, effective, strict=True)
        )
        return SweepReport(
            num_rows=num_rows,
            num_downloaded=num_downloaded,
            num_candidates=int(found.num_rows.sum()),
            points=points,
            overlaps=found.overlaps(keeps),
        )

    def _check_bits(self) -> None:
        sizes = [len(axis.choices) for axis in self._config.axes]
        if sum(sizes) > _MAX_BITS:
            raise InputError(f"{sum(sizes)} values are swept; {_MAX_BITS} are the most in one sweep")
        if self._has_cuts and math.prod(sizes) > _MAX_BITS:
            raise InputError(
                f"the grid has {math.prod(sizes)} points, and the base cuts what its rules leave (top, per_group, mix or limit); "
                f"{_MAX_BITS} points are the most then"
            )

    def _expressions(self) -> dict[str, str]:
        """Return every expression by what an error should call it."""
        found = dict(self._base.expressions())
        for axis in self._config.axes:
            for choice in axis.choices:
                if axis.is_fraction:
                    found[f"top {choice.sql}"] = f"({choice.sql}\n)::DOUBLE"
                else:
                    found[f"rule {axis.rule!r} with {', '.join(choice.values)}"] = choice.sql
        found |= {f"share {sql!r}": f"({sql}\n)::VARCHAR" for sql in self._shares}
        return found | {f"mean {sql!r}": f"({sql}\n)::DOUBLE" for sql in self._means}

    def _default_means(self) -> tuple[str, ...]:
        """Return the scores that are varied and then the pool's, as SQL."""
        varied = [axis.choices[0].sql for axis in self._config.axes if axis.is_fraction]
        scores = [
            f"{label}.{column}"
            for label, columns in self._catalog.label_columns.items()
            for column in columns
            if column.endswith("_score") and self._catalog.column_type(label, column) in _NUMBERS
        ]
        return tuple(dict.fromkeys([*varied, *_complete(self._catalog, scores)]))[:_MAX_DEFAULT_MEANS]

    def _fixed(self) -> str:
        """Return the condition of the rows that pass every rule that stays."""
        rules = [f"({self._catalog.expand(sql)}\n)" for sql in self._base.rules.values()]
        return f"({' AND '.join([_DOWNLOADED, *rules])})"

    def _key(self, axes: Sequence[Axis]) -> str:
        """Return the SQL of a row's number: a bit for every choice of every axis."""
        choices = [choice for axis in axes for choice in axis.choices]
        bits = (
            f"CASE WHEN ({self._catalog.expand(choice.sql)}\n) THEN {1 << bit}::UBIGINT ELSE 0::UBIGINT END"
            for bit, choice in enumerate(choices)
        )
        return " | ".join(bits)

    def _weight(self, axes: Sequence[Axis]) -> str:
        """Return the SQL of the weight; under a CASE, one that is an error for rows that no point keeps does not end the query."""
        weight = f"({self._catalog.expand(self._base.weight)}\n)::DOUBLE"
        return weight if self._base.weight == "1.0" else f"CASE WHEN ({self._key(axes)}) <> 0 THEN {weight} END"

    def _measures(self) -> dict[str, str]:
        """Return the SQL of what is averaged and counted, by the columns' names in the tally."""
        found = {}
        for number, sql in enumerate(self._means):
            value = f"({self._catalog.expand(sql)}\n)::DOUBLE"
            found[f"mean_{number}"] = f"CASE WHEN isfinite({value}) THEN {value} END"
        for number, sql in enumerate(self._shares):
            found[f"share_{number}"] = f"coalesce(({self._catalog.expand(sql)}\n)::VARCHAR, '{NULL}')"
        return found

    def _find_thresholds(self, axis: Axis) -> Axis:
        """Return an axis of shares as conditions: with N scores in descending order the threshold is the one at int(N * share)."""
        counted = _DOWNLOADED if self._config.top_of == "pool" else self._fixed()
        score = axis.choices[0].sql
        value = f"({self._catalog.expand(score)}\n)::DOUBLE"
        query = self._catalog.over_ranges([f"{value} AS score"], self._labels, f"{counted} AND {value} IS NOT NULL")
        with self._catalog.translate():
            scores = self._catalog.connection.sql(query).to_arrow_table()["score"].to_numpy()
        has_nan = bool(np.isnan(scores).any())
        ranked = np.sort(scores[~np.isnan(scores)])[::-1]
        if not len(ranked):
            raise InputError(f"no row that counts has a value of {score!r}, so there is no best share by it")
        choices = []
        for choice in axis.choices:
            (share,) = choice.values
            threshold = float(ranked[min(int(len(ranked) * float(share)), len(ranked) - 1)])
            # With an exponent SQL reads a double, to the last bit; NaN is above everything in SQL.
            literal = repr(threshold) if "e" in repr(threshold) else f"{threshold!r}e0"
            sql = f"{_bracket(score)} >= {literal}" + (f" AND NOT isnan(({score})::DOUBLE)" if has_nan else "")
            choices.append(Choice(values=choice.values, sql=sql))
        return replace(axis, choices=tuple(choices))

    def _apply_cuts(
        self, axes: Sequence[Axis], combinations: Sequence[tuple[int, ...]], selections: Sequence[Selection]
    ) -> tuple[str, list[float | None]]:
        """Return the query of the rows with the points that keep each, a bit for a point, and the effective samples of every point."""
        catalog, connection = self._catalog, self._catalog.connection
        fixed = self._fixed()
        parts = [f"{fixed} IS TRUE AS is_candidate", f"CASE WHEN {fixed} THEN {self._key(axes)} END AS choices"]
        parts += cut_columns(catalog, self._base, where=fixed, downloaded=_DOWNLOADED)
        parts += [f"CASE WHEN {fixed} THEN {sql} END AS {name}" for name, sql in self._measures().items()]
        catalog.tabulate(VERDICT, parts, self._labels)
        weights = connection.sql(f"SELECT weight FROM {VERDICT}").to_arrow_table()["weight"].to_numpy()
        keys = np.zeros(len(weights), np.uint64)
        effective = []
        for number, (chosen, selection) in enumerate(zip(combinations, selections, strict=True)):
            bits = _bits(axes, chosen)
            where = f"is_candidate AND choices & {bits}::UBIGINT = {bits}::UBIGINT"
            cuts: dict[str, object] = {}
            candidates = f"SELECT rowid AS position, * FROM {VERDICT} WHERE {where}"
            *_, (_, _, positions) = run_cuts(catalog, selection, candidates, cuts)
            keys[positions] |= np.uint64(1 << number)
            own = weights
            if selection.mix:
                own = weights.copy()
                apply_mix(catalog, selection.mix, cuts, own)
            effective.append(effective_samples(own[positions]))
        connection.register("sweep_keys", pa.table({"sweep_key": keys}))
        return f"SELECT * FROM (SELECT * FROM sweep_keys POSITIONAL JOIN {VERDICT}) WHERE is_candidate", effective


def _default_shares(catalog: Catalog) -> tuple[str, ...]:
    """Return the columns of the source and of the language, where the pool has them."""
    own = [name for name in _DEFAULT_SHARES if name in catalog.sample_columns]
    found = [
        f"{label}.{name}"
        for label, columns in catalog.label_columns.items()
        for name in _DEFAULT_SHARES
        if name in columns
    ]
    return (*own, *_complete(catalog, found))


def _complete(catalog: Catalog, columns: Sequence[str]) -> list[str]:
    """Return the columns whose label has every shard: what nobody asked for must not stop a sweep."""
    return [column for column in columns if not catalog.files(column.partition(".")[0]).missing]


def _name_points(
    base: Selection, config: SweepConfig, axes: Sequence[Axis], combinations: Sequence[tuple[int, ...]]
) -> list[Selection]:
    """Return the selection of every point; a varied rule stays where the base has it, or comes after the base's rules."""
    selections: list[Selection] = []
    taken: set[str] = set()
    for number, chosen in enumerate(combinations):
        choices = {axis.rule: axis.choices[choice] for axis, choice in zip(axes, chosen, strict=True)}
        rules = {name: choices[name].sql if name in choices else sql for name, sql in config.base.rules.items()}
        rules |= {name: choice.sql for name, choice in choices.items()}
        words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", value) for c in choices.values() for value in c.values)
        name = f"{base.name}-{words}"[:MAX_NAME]
        if name in taken:
            name = f"{name[: MAX_NAME - 5]}-{number + 1}"
        taken.add(name)
        selections.append(replace(base, name=name, rules=rules))
    return selections


def _values(axes: Sequence[Axis], chosen: Sequence[int]) -> dict[str, str]:
    pairs = (
        zip(axis.titles, axis.choices[number].values, strict=True) for axis, number in zip(axes, chosen, strict=True)
    )
    return dict(itertools.chain.from_iterable(pairs))


def _bits(axes: Sequence[Axis], chosen: Sequence[int]) -> int:
    """Return the bits of the chosen choices in a row's number."""
    starts = itertools.accumulate((len(axis.choices) for axis in axes), initial=0)
    return sum(1 << (start + choice) for start, choice in zip(starts, chosen, strict=False))


def _has_bits(keys: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.bool_]:
    return np.asarray(keys & np.uint64(bits) == np.uint64(bits))


def _bracket(sql: str) -> str:
    return sql if re.fullmatch(r"[\w.]+", sql) else f"({sql})"
