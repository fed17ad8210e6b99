"""A narrow table of every row of the pool: where it lies, what became of it, and the numbers that are drawn.

It is made in one pass over the columns that the report needs and lives in DuckDB, which moves it to disk where memory is short; nothing
of the pool is ever in Python but sums, and the few rows that are shown.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

from curate.catalog import SAMPLES, Catalog
from curate.expression import quote_name, quote_text
from curate.fingerprint import pool_digest
from curate.store import LabelTarget, Pool
from pipelines.report.threshold import Threshold, find_thresholds
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS
from schemas.selection import DOWNLOADED_RULE, LEDGER_FILE, SELECTION_FILE

FACTS = "report_facts"
# Columns that are drawn: those that rules compare come first.
MAX_MEASURES = 24
# Pictures come from this many shards, drawn at random, as far as these suffice: a tar is opened for each.
NUM_SHARDS = 32
_NUMERIC = ("FLOAT", "DOUBLE", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_SAMPLE_MEASURES = ("original_width", "original_height")
# What models say of a sample is drawn before what is counted in it.
_SCORES = ("_score", "_similarity", "_probability", "_cosine")
# A name in SQL as DuckDB spells it.
_NAME = r'(?:"(?:[^"]|"")*"|\w+)'
# Numbers that name things: a histogram of them says nothing.
_NAMES = ("_id", "_ids", "_cluster", "_hash", "_group", "_index", "_seed", "_crc")
# A rule is a bit of a BIGINT; a selection of more rules is shown without the galleries of the last ones.
MAX_RULES = 62


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of every row: SQL over the pool, the column of the table that holds it, and the thresholds it is compared with."""

    title: str
    expression: str
    column: str
    thresholds: tuple[Threshold, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The selection that is reported: its folder in the pool and its `selection.json`."""

    folder: str
    content: Mapping[str, Any]

    @property
    def rules(self) -> tuple[str, ...]:
        """Every rule and cut in the order of the funnel, the download first."""
        return tuple(row["rule"] for row in self.content["funnel"])


class Facts:
    """The table, a context manager; `choice` is None for a report without a selection.

    Columns: shard, row, hash (of the uid: an order at random), remote (not in one of the drawn shards), ok (has a picture), mask (a
    bit per failed rule), first (number of the first), kept, weight, language, cluster, nearness (to the cluster's centre), and one per
    measure. The number of a row in the pool is DuckDB's `rowid`.
    """

    def __init__(
        self, pool: Pool, choice: Choice | None, *, memory_limit: str = "2GB", threads: int | None = None
    ) -> None:
        """Read the pool's headers; raises InputError where the selection is of another state of the pool."""
        self.pool, self.choice = pool, choice
        # Sandboxed: a pool from elsewhere brings SQL of its own in its selections.
        self.catalog = Catalog(pool, memory_limit=memory_limit, threads=threads, sandboxed=True)
        self.notes: list[str] = []
        self.num_undrawn = 0  # columns of numbers beyond `MAX_MEASURES`
        self.starts: list[int] = []
        self.num_rows = 0
        for header in self.catalog.shards:
            self.starts.append(self.num_rows)
            self.num_rows += header.num_rows

    def __enter__(self) -> "Facts":
        try:
            self._check_choice()
            self._build()
        except BaseException:
            self.catalog.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.catalog.close()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query over the table, its views and the pool's."""
        with self.catalog.translate():
            rows: list[tuple[Any, ...]] = self.catalog.connection.execute(sql).fetchall()
        return rows

    def pool_query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT over `pool`, `samples` and the labels."""
        rows: list[tuple[Any, ...]] = self.catalog.sql(sql).fetchall()
        return rows

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of the selection; none without one."""
        return self.choice.rules if self.choice else ()

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """What the rules compare, then other numbers of the pool, `MAX_MEASURES` at most."""
        thresholds = find_thresholds(self.catalog, self.choice.content) if self.choice else []
        by_expression: dict[str, list[Threshold]] = {}
        titles: dict[str, str] = {}
        for threshold in thresholds:
            expression = self._normalise(threshold.expression)
            by_expression.setdefault(expression, []).append(threshold)
            if threshold.title != threshold.expression:
                titles[expression] = threshold.title
        others = [name for name in self._numbers() if name not in by_expression]
        others.sort(key=lambda name: not name.rstrip('"').endswith(_SCORES))
        wanted = [*by_expression, *others]
        self.num_undrawn = max(0, len(wanted) - MAX_MEASURES)
        return tuple(
            Measure(
                title=unquote(titles.get(expression, expression)),
                expression=expression,
                column=f"v{number}",
                thresholds=tuple(by_expression.get(expression, ())),
            )
            for number, expression in enumerate(wanted[:MAX_MEASURES])
            if self._is_number(expression)
        )

    @cached_property
    def language(self) -> str | None:
        """`label.language_code` of the pool's first language operator."""
        return self._find("language", "language_code")

    @cached_property
    def cluster(self) -> tuple[str, str] | None:
        """The columns (cluster, similarity with its centre) of the pool's first clustering."""
        for operator, number, nearness in (
            ("cluster", "cluster_id", "cluster_similarity"),
            ("semantic_dedup", "semantic_dedup_cluster", "semantic_dedup_max_similarity"),
        ):
            found = self._find(operator, number)
            if found:
                return found, f"{found.rpartition('.')[0]}.{quote_name(nearness)}"
        return None

    def labels_of(self, operator: str) -> list[str]:
        """Return the labels of an operator that have files."""
        targets = self.catalog.labels
        return [label for label in self.catalog.label_columns if targets[label].operator == operator]

    def mask_of(self, rule: str) -> int:
        """Return the bit of a rule."""
        return 1 << self.rules.index(rule)

    def _find(self, operator: str, column: str) -> str | None:
        labels = [label for label in self.labels_of(operator) if column in self.catalog.label_columns[label]]
        return f"{quote_name(labels[0])}.{quote_name(column)}" if labels else None

    def _normalise(self, expression: str) -> str:
        """Spell a bare column with its table, so that a rule's column and the pool's are one."""
        parts = [unquote(part) for part in re.findall(_NAME, expression)]
        if not re.fullmatch(rf"{_NAME}(?:\.{_NAME})?", expression):
            return expression
        tables = {SAMPLES: self.catalog.sample_columns, **self.catalog.label_columns}
        owners = [table for table, columns in tables.items() if parts[-1] in columns and parts[:-1] in ([], [table])]
        return f"{quote_name(owners[0])}.{quote_name(parts[-1])}" if len(owners) == 1 else expression

    def _numbers(self) -> list[str]:
        found = [f'"{SAMPLES}".{quote_name(name)}' for name in _SAMPLE_MEASURES if name in self.catalog.sample_columns]
        for label, columns in self.catalog.label_columns.items():
            types = self.catalog.sql(f"SELECT * FROM {quote_name(label)} LIMIT 0")
            kinds = dict(zip(types.columns, map(str, types.types), strict=True))
            found += [
                f"{quote_name(label)}.{quote_name(name)}"
                for name in columns
                if kinds[name] in _NUMERIC and not name.endswith(_NAMES)
            ]
        return found

    def _is_number(self, expression: str) -> bool:
        """Tell whether an expression gives a number; a rule may as well compare dates."""
        source = self.catalog.source(self._labels([expression]), 0, 1)
        try:
            ((kind,),) = self.query(
                f"SELECT typeof(({expression}\n)) FROM (SELECT 1) LEFT JOIN ({source}) ON true LIMIT 1"
            )
        except InputError:
            return False
        return str(kind).startswith((*_NUMERIC, "DECIMAL", "HUGEINT", "UBIGINT"))

    def _labels(self, expressions: Sequence[str]) -> list[str]:
        return self.catalog.used_labels([self.catalog.parse(expression) for expression in expressions])

    def _build(self) -> None:
        columns = {
            "shard": f"{SAMPLES}.shard",
            "row": f"{SAMPLES}.row",
            "hash": f"hash({SAMPLES}.uid)",
            "remote": f"{SAMPLES}.shard NOT IN ({', '.join(map(str, self._draw_shards()))})",
            "ok": f"{SAMPLES}.status = '{STATUS_SUCCESS}'",
            "language": self.language or "NULL::VARCHAR",
            "cluster": self.cluster[0] if self.cluster else "NULL::INTEGER",
            "nearness": self.cluster[1] if self.cluster else "NULL::FLOAT",
        }
        read = [each.expression for each in self.measures]
        read += [columns[name] for name in ("language", "cluster", "nearness")]
        labels = self._labels(read)
        self._note_missing(labels)
        for each in self.measures:
            # A logarithm of zero in a row that a rule drops anyway does not end the report.
            is_safe = "SELECT" not in each.expression.upper()
            inner = f"TRY(({each.expression}\n))" if is_safe else f"({self.catalog.expand(each.expression)}\n)"
            columns[each.column] = f"TRY_CAST({inner} AS FLOAT)"
        self.catalog.tabulate("report_measured", [f"{sql} AS {name}" for name, sql in columns.items()], labels)
        verdict = self._verdict()
        if verdict is None:
            empty = "0::BIGINT AS mask, NULL::INTEGER AS first, ok AS kept, NULL::FLOAT AS weight"
            self.query(f"CREATE TEMP TABLE {FACTS} AS SELECT *, {empty} FROM report_measured")
        else:
            self.query(f"CREATE TEMP TABLE {FACTS} AS SELECT * FROM report_measured POSITIONAL JOIN ({verdict})")
            ((foreign,),) = self.query(f"SELECT count(*) FROM {FACTS} WHERE hash IS DISTINCT FROM ledger_hash")
            if foreign and self.choice:
                raise InputError(
                    f"the ledger of {self.choice.folder} does not hold the pool's samples in the pool's order; run `winnow select` again"
                )
        self.query("DROP TABLE report_measured")

    def _verdict(self) -> str | None:
        """Return the query that gives what became of every row, in the pool's order."""
        if self.choice is None:
            return None
        path = self.pool.locate(f"{self.choice.folder}/{LEDGER_FILE}")
        names = ", ".join(map(quote_text, self.rules))
        bits = " | ".join(
            f"(CASE WHEN list_contains(failing_rules, {quote_text(rule)}) THEN {1 << bit}::BIGINT ELSE 0 END)"
            for bit, rule in enumerate(self.rules[:MAX_RULES])
        )
        first = f"list_position([{names}], first_failing_rule)::INTEGER - 1"
        return (
            f"SELECT CASE WHEN kept THEN 0 ELSE {bits} END AS mask, "
            f"{first} AS first, kept, weight::FLOAT AS weight, hash(uid) AS ledger_hash FROM read_parquet({quote_text(path)})"
        )

    def _draw_shards(self) -> list[int]:
        shards = [header.shard for header in self.catalog.shards]
        return sorted(random.Random(0).sample(shards, min(NUM_SHARDS, len(shards))))

    def _check_choice(self) -> None:
        if self.choice is None:
            return
        content, folder = self.choice.content, self.choice.folder
        if content["num_rows"] != self.num_rows:
            raise InputError(
                f"{folder} was made over {content['num_rows']:,} rows and {self.pool.root} has {self.num_rows:,}: the pool grew; run "
                "`winnow select` again"
            )
        digest = pool_digest({header.shard: header.shard_digest for header in self.catalog.shards})
        if content["pool_digest"] != digest:
            self.notes.append(
                f"{folder} was made before rows of the pool changed; `winnow select` brings it up to date"
            )
        changed = [
            label
            for label, target in content["labels"].items()
            if self.catalog.labels.get(label) != LabelTarget(**target)
        ]
        if changed:
            self.notes.append(
                f"{', '.join(changed)} {'was' if len(changed) == 1 else 'were'} annotated otherwise when {folder} was made: "
                "thresholds are those of the selection, values those of now"
            )

    def _note_missing(self, labels: Sequence[str]) -> None:
        for label in labels:
            missing = self.catalog.files(label).missing
            if missing:
                self.notes.append(
                    f"{label} lacks {len(missing)} of {len(self.catalog.shards)} shards, which count as without a value; "
                    f"complete it with: {self.catalog.annotate_command(label)}"
                )


def unquote(sql: str) -> str:
    """Return SQL with quoted names as they are: for people, not for DuckDB."""
    return re.sub(r'"((?:[^"]|"")*)"', lambda match: match[1].replace('""', '"'), sql)


def load_choice(pool: Pool, folder: str) -> Choice:
    """Read a selection of the pool."""
    return Choice(folder=folder, content=json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}")))


def describe_rule(choice: Choice, rule: str) -> str:
    """Return the SQL of a rule as the funnel states it."""
    return next((str(row["sql"]) for row in choice.content["funnel"] if row["rule"] == rule), "")


def is_download(rule: str) -> bool:
    """Tell whether a rule is the one that rows without a picture fail."""
    return rule == DOWNLOADED_RULE
