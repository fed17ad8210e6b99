"""Explains one sample: every measurement, every rule of every selection, its copies, its captions and where they came from.

Whether a row was kept is read from the ledger, which is what happened; the values beside each rule are the pool's now, and a selection
whose annotations were made anew since says so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.catalog import SAMPLES, Catalog
from curate.expression import quote_name, quote_text
from curate.models.generation import provenance_fields
from curate.store import LabelTarget, Pool
from schemas.annotation import ERROR_COLUMN
from schemas.errors import InputError
from schemas.selection import DOWNLOADED_RULE, LEDGER_FILE, SELECTION_FILE

_UID = re.compile(r"[0-9a-f]{32}")
_GROUP_SUFFIX = "_group"
# Longer lists, such as embeddings, are shown by their length.
_MAX_ELEMENTS = 16
# Of one group; a group of thousands of copies is told by its size.
MAX_COPIES = 10
# What ends the names of the columns that say where a text came from.
_PROVENANCE = tuple(field.name.removeprefix("_") for field in provenance_fields(""))

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RuleVerdict:
    """One rule, or one cut, of a selection; `values` are those of the columns it reads."""

    rule: str
    sql: str
    passed: bool
    is_first: bool  # it is what dropped the sample
    values: Row


@dataclass(frozen=True, kw_only=True)
class SelectionVerdict:
    """What a selection did with the sample."""

    folder: str
    kept: bool
    weight: float | None
    rules: tuple[RuleVerdict, ...]
    changed_labels: tuple[str, ...]  # made anew since: the values are not those that the rules saw


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The other samples of a group of copies."""

    column: str  # label.column of the group
    group: str
    num_others: int
    others: tuple[Row, ...]  # uid and url of the first ones


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text of the sample, with what its operator kept of how it was made."""

    column: str
    text: str | tuple[str, ...]
    provenance: Row


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything that a pool knows of one sample."""

    sample: Row
    labels: Mapping[str, Row]
    captions: tuple[Caption, ...]
    copies: tuple[Copies, ...]
    selections: tuple[SelectionVerdict, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the explanation as JSON values."""
        return asdict(self)


def why(pool: Pool, sample: str, *, selection: str = "") -> list[Explanation]:
    """Explain the sample with a uid, or those with a URL; `selection` (a name or a folder) leaves the other selections out.

    Raises InputError where the pool has no such sample or selection.
    """
    is_uid = bool(_UID.fullmatch(sample))
    folders = find_selections(pool, selection)
    with Catalog(pool) as catalog:
        column = "uid" if is_uid else "url"
        found = _fetch(catalog, f"SELECT * FROM {SAMPLES} WHERE {column} = {quote_text(sample)}")
        if not found:
            raise InputError(
                f"{pool.root} has no sample with the {column} {sample!r}; `winnow sql --pool {pool.root} "
                f"\"SELECT uid, url FROM samples WHERE url LIKE '%PART%'\"` searches"
            )
        return [explain(catalog, row, folders) for row in found]


def find_selections(pool: Pool, selection: str = "") -> list[str]:
    """Return the folders of a pool's selections, or of those that a name or a folder means; raises InputError where it means none."""
    folders = pool.selections()
    if not selection:
        return folders
    wanted = selection.rstrip("/").rpartition("/")[2]
    found = [folder for folder in folders if wanted in {folder.rpartition("/")[2], folder.rpartition("/")[2][:-13]}]
    if not found:
        names = ", ".join(folder.rpartition("/")[2] for folder in folders) or "none"
        raise InputError(f"{pool.root} has no selection {selection!r}; it has: {names}")
    return found


def explain(catalog: Catalog, sample: Row, folders: Sequence[str]) -> Explanation:
    """Explain the sample of a row of `samples` by the selections in `folders`; of every annotation only the sample's shard is read."""
    position = next(number for number, header in enumerate(catalog.shards) if header.shard == sample["shard"])
    labels: dict[str, Row] = {}
    for label, columns in catalog.label_columns.items():
        listed = ", ".join(f"{quote_name(label)}.{quote_name(name)} AS {quote_name(name)}" for name in columns)
        source = catalog.source([label], position, position + 1)
        table = catalog.connection.sql(f"SELECT {listed} FROM {source} WHERE {SAMPLES}.row = {sample['row']}")
        (labels[label],) = table.to_arrow_table().to_pylist()
    values = {f"{SAMPLES}.{name}": value for name, value in sample.items()}
    values |= {f"{label}.{name}": value for label, row in labels.items() for name, value in row.items()}
    return Explanation(
        sample={name: _shorten(value) for name, value in sample.items()},
        labels={
            label: {name: _shorten(value) for name, value in row.items() if name != ERROR_COLUMN or value}
            for label, row in labels.items()
        },
        captions=tuple(_captions(sample, labels)),
        copies=tuple(_copies(catalog, str(sample["uid"]), labels)),
        selections=tuple(_judge(catalog, folder, str(sample["uid"]), values) for folder in folders),
    )


def _captions(sample: Row, labels: Mapping[str, Row]) -> Iterator[Caption]:
    if sample.get("alt_text") is not None:
        yield Caption(column="alt_text", text=sample["alt_text"], provenance={})
    for label, row in labels.items():
        for name, value in row.items():
            provenance = {key: row[f"{name}_{key}"] for key in _PROVENANCE if f"{name}_{key}" in row}
            if provenance and value is not None:
                text = tuple(value) if isinstance(value, list) else value
                yield Caption(column=f"{label}.{name}", text=text, provenance=provenance)


def _copies(catalog: Catalog, uid: str, labels: Mapping[str, Row]) -> Iterator[Copies]:
    for label, row in labels.items():
        for name, group in row.items():
            if not name.endswith(_GROUP_SUFFIX) or group is None:
                continue
            condition = (
                f"{quote_name(label)}.{quote_name(name)} = {quote_text(group)} AND {SAMPLES}.uid <> {quote_text(uid)}"
            )
            ((count,),) = catalog.sql(f"SELECT count(*) FROM pool WHERE {condition}").fetchall()
            if count:
                others = _fetch(
                    catalog, f"SELECT uid, url FROM pool WHERE {condition} ORDER BY shard, row LIMIT {MAX_COPIES}"
                )
                yield Copies(column=f"{label}.{name}", group=str(group), num_others=count, others=tuple(others))


def _judge(catalog: Catalog, folder: str, uid: str, values: Row) -> SelectionVerdict:
    pool = catalog.pool
    content = json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}"))
    with pool.open(f"{folder}/{LEDGER_FILE}") as file:
        entry = _find_entry(pq.ParquetFile(file), uid)
    if entry is None:
        raise InputError(f"the ledger of {folder} lacks {uid}: the pool has grown since; run `winnow select` again")
    failing = set(entry["failing_rules"])
    reads = _reads(content)
    rules = tuple(
        RuleVerdict(
            rule=row["rule"],
            sql=row["sql"],
            passed=row["rule"] not in failing,
            is_first=row["rule"] == entry["first_failing_rule"],
            values=_values(catalog, reads.get(row["rule"], ""), values),
        )
        for row in _until_cut(content["funnel"], entry)
    )
    pinned = {label: LabelTarget(**target) for label, target in content["labels"].items()}
    changed = tuple(label for label, target in pinned.items() if catalog.labels.get(label) != target)
    return SelectionVerdict(
        folder=folder, kept=entry["kept"], weight=entry["weight"], rules=rules, changed_labels=changed
    )


def _find_entry(ledger: pq.ParquetFile, uid: str) -> Row | None:
    """Return a sample's row of a ledger; only the uids of what lies before it are read, for ledgers have a row per row of the pool."""
    for group in range(ledger.num_row_groups):
        place = pc.index(ledger.read_row_group(group, columns=["uid"])["uid"], uid).as_py()
        if place >= 0:
            (entry,) = ledger.read_row_group(group).slice(place, 1).to_pylist()
            return dict(entry)
    return None


def _until_cut(funnel: Sequence[Row], entry: Row) -> list[Row]:
    """Leave out the cuts that a row never came to: a row that fails a rule is in no running for the best share."""
    first = entry["first_failing_rule"]
    cuts = {"top", "per_group", "mix", "limit"}
    place = next((number for number, row in enumerate(funnel) if row["rule"] == first), len(funnel))
    return [row for number, row in enumerate(funnel) if row["rule"] not in cuts or number <= place]


def _reads(content: Row) -> dict[str, str]:
    """Return the SQL of each rule and cut, to find the columns they read."""
    found = {DOWNLOADED_RULE: "status", **dict(content["rules"])}
    for cut in ("top", "per_group", "mix", "limit"):
        if content.get(cut) and content[cut].get("by"):
            found[cut] = content[cut]["by"]
    return found


def _values(catalog: Catalog, sql: str, values: Row) -> dict[str, Any]:
    """Return the values of the columns that an expression reads; those inside its subqueries are of other rows, and left out."""
    if not sql:
        return {}
    found = {}
    by_name = {name.lower(): name for name in values}
    for names in sorted(catalog.parse(sql).columns):
        spelled = ".".join(names)
        if spelled in by_name:
            found[by_name[spelled]] = _shorten(values[by_name[spelled]])
        elif len(names) == 1:
            owners = [name for lower, name in by_name.items() if lower.partition(".")[2] == spelled]
            own = [name for name in owners if name.startswith(f"{SAMPLES}.")] or owners
            if len(own) == 1:
                found[names[0]] = _shorten(values[own[0]])
    return found


def _fetch(catalog: Catalog, query: str) -> list[Row]:
    table: pa.Table = catalog.sql(query).to_arrow_table()
    return list(table.to_pylist())


def _shorten(value: object) -> object:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and len(value) > _MAX_ELEMENTS and not isinstance(value[0], str):
        return f"{len(value):,} numbers"
    return value
