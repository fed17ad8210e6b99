"""What is to be computed, in which order, from where: operators with their fingerprints and the origin of every input."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from curate.fingerprint import fingerprint, pool_digest
from curate.operator import (
    IMAGE_COLUMN,
    IMAGE_FILE_BYTES_COLUMN,
    IMAGE_FILE_COLUMN,
    IMAGE_LUMA_COLUMN,
    Operator,
    PoolOperator,
    ShardOperator,
)
from curate.store import LabelTarget, Pool, ShardHeader
from schemas.annotation import ERROR_COLUMN, UID_COLUMN
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import SQL_NAMES

_LABEL = re.compile(r"[a-z_][a-z0-9_]*")
# Views of the catalog, and the words SQL would take a label for.
_RESERVED_LABELS = frozenset({
    "pool",
    "samples",
    "select",
    "from",
    "where",
    "order",
    "group",
    "table",
    "all",
    "and",
    "or",
    "not",
})
_PICTURE_KINDS: dict[str, Literal["image", "image_luma", "image_file", "image_file_bytes"]] = {
    IMAGE_COLUMN: "image",
    IMAGE_LUMA_COLUMN: "image_luma",
    IMAGE_FILE_COLUMN: "image_file",
    IMAGE_FILE_BYTES_COLUMN: "image_file_bytes",
}
_DISK_NAMES = {sql: disk for disk, sql in SQL_NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an input column comes from; `column` is its name there, on disk."""

    kind: Literal["sample", "image", "image_luma", "image_file", "image_file_bytes", "annotation"]
    column: str
    operator: str = ""  # of an annotation
    fingerprint: str = ""
    label: str = ""  # a name SQL knows it by
    follows_pool: bool = False  # see Planned

    @property
    def sql_name(self) -> str:
        """The column as a query over the pool names it."""
        return f"{self.label}.{self.column}" if self.kind == "annotation" else SQL_NAMES.get(self.column, self.column)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An operator that is to run: its fingerprint, its inputs, every label it goes by, and the pass it belongs to."""

    operator: Operator
    fingerprint: str
    origins: Mapping[str, Origin]
    labels: tuple[str, ...]
    # Even: row operators of one pass over the shards; odd: pool operators between two such passes.
    phase: int
    # Whether its rows change when any shard does: it is pool-wide, or reads something that is.
    follows_pool: bool

    @property
    def is_pool_wide(self) -> bool:
        """Whether it needs every row at once."""
        return isinstance(self.operator, PoolOperator)

    @property
    def has_model(self) -> bool:
        """Whether it runs in an actor with a model loaded."""
        return isinstance(self.operator, ShardOperator) and self.operator.resources.model

    @property
    def reads_pictures(self) -> bool:
        """Whether a shard's pictures are decoded for it."""
        return any(origin.kind in ("image", "image_luma") for origin in self.origins.values())

    @property
    def upstream(self) -> frozenset[str]:
        """The fingerprints of the operators whose columns it reads."""
        return frozenset(origin.fingerprint for origin in self.origins.values() if origin.fingerprint)


def make_plan(pool: Pool, operators: Sequence[Operator], sample_columns: Iterable[str]) -> list[Planned]:
    """Return `operators` and what they require, each once, inputs before their readers.

    `sample_columns` are the columns of the pool's shards as on disk. Labels that would mean two things are refused.
    """
    planner = _Planner(pool, frozenset(sample_columns), operators)
    for operator in operators:
        planner.add(operator)
    plan = list(planner.planned.values())
    _check_labels(pool, plan)
    return plan


def open_plan(pool: Pool, operators: Sequence[Operator]) -> tuple[dict[int, ShardHeader], list[Planned]]:
    """Return the headers of a pool's shards, and the plan of `operators` over them; raises `InputError` where either is empty."""
    if not operators:
        raise InputError("no operator was named; `winnow operators` lists them")
    headers = {shard: pool.shard_header(shard) for shard in pool.require_shards()}
    columns = pool.read_footer(pool.shard_parquet(min(headers))).schema.to_arrow_schema().names
    folder = pool.root if pool.is_local else ""
    plan = make_plan(pool, operators, columns)
    return headers, [replace(planned, operator=planned.operator.placed(folder)) for planned in plan]


def digest_headers(headers: Mapping[int, ShardHeader]) -> str:
    """Return the identity of a pool's rows."""
    return pool_digest({shard: header.shard_digest for shard, header in headers.items()})


def missing_shards(pool: Pool, planned: Planned, headers: Mapping[int, ShardHeader], digest: str) -> list[int]:
    """Return the shards for which an operator has no current file."""
    name = planned.operator.name
    return pool.missing(name, planned.fingerprint, headers, digest if planned.follows_pool else "")


def label_targets(plan: Sequence[Planned]) -> dict[str, LabelTarget]:
    """Return what each label of a plan stands for."""
    return {
        label: LabelTarget(operator=planned.operator.name, fingerprint=planned.fingerprint)
        for planned in plan
        for label in planned.labels
    }


class _Planner:
    """Adds operators depth first; `planned` keeps the order in which they became possible."""

    def __init__(self, pool: Pool, sample_columns: frozenset[str], operators: Sequence[Operator]) -> None:
        self.planned: dict[str, Planned] = {}
        self._pool = pool
        self._pool_labels = pool.labels()
        self._sample_columns = sample_columns
        # A label may be bound before its operator's turn has come.
        self._by_label = {operator.sql_name: operator for operator in operators}
        self._open: list[str] = []

    def add(self, operator: Operator) -> Planned:
        if operator.sql_name in self._open:
            raise InputError(
                f"operators read each other's columns in a circle: {' -> '.join([*self._open, operator.sql_name])}"
            )
        self._open.append(operator.sql_name)
        required = [self.add(other) for other in operator.requires()]
        _check_bind(operator)
        origins = {column: self._find_origin(operator, column, required) for column in operator.reads}
        self._open.pop()
        upstream = {
            column: f"{origin.fingerprint}.{origin.column}" if origin.fingerprint else origin.column
            for column, origin in origins.items()
            if origin.fingerprint or origin.sql_name != column
        }
        identity = fingerprint(operator, upstream)
        known = self.planned.get(identity)
        if known is not None:
            # The same rows under another name: computed once, both labels set.
            labels = known.labels if operator.sql_name in known.labels else (*known.labels, operator.sql_name)
            self.planned[identity] = replace(known, labels=labels)
        else:
            self.planned[identity] = Planned(
                operator=operator,
                fingerprint=identity,
                origins=origins,
                labels=(operator.sql_name,),
                phase=self._phase(operator, origins),
                follows_pool=isinstance(operator, PoolOperator) or any(o.follows_pool for o in origins.values()),
            )
        return self.planned[identity]

    def _phase(self, operator: Operator, origins: Mapping[str, Origin]) -> int:
        parity = int(isinstance(operator, PoolOperator))
        earlier = [self.planned[o.fingerprint].phase for o in origins.values() if o.fingerprint in self.planned]
        return max([parity, *(phase + (phase % 2 != parity) for phase in earlier)])

    def _find_origin(self, operator: Operator, column: str, required: Sequence[Planned]) -> Origin:
        bound = operator.bind.get(column)
        if bound is None:
            for planned in required:
                if column in planned.operator.writes.names:
                    return _annotation_origin(planned, column)
            label = self._find_label(operator, column)
            if label:
                return self._label_origin(operator, column, label, column)
            return self._sample_origin(operator, column, column)
        label, dot, name = bound.rpartition(".")
        if not dot:
            label = self._find_label(operator, bound)
            if not label:
                return self._sample_origin(operator, column, bound)
        for planned in required:
            if label in planned.labels and name in planned.operator.writes.names:
                return _annotation_origin(planned, name)
        return self._label_origin(operator, column, label, name)

    def _find_label(self, operator: Operator, column: str) -> str:
        """Return the one label, of this call or else of the pool, that has a column which samples lack; "" where none has."""
        if column in _PICTURE_KINDS or _DISK_NAMES.get(column, column) in self._sample_columns:
            return ""
        found = [label for label, other in self._by_label.items() if column in other.writes.names]
        if not found:
            found = [label for label, target in self._pool_labels.items() if column in self._stored_columns(target)]
        if len(found) > 1:
            raise InputError(
                f"operator {operator.sql_name!r} reads {column!r}, which {', '.join(sorted(found))} have; say which with "
                f"bind.{column}={found[0]}.{column}"
            )
        return found[0] if found else ""

    def _stored_columns(self, target: LabelTarget) -> list[str]:
        folder = self._pool.annotation_folder(target.operator, target.fingerprint)
        files = self._pool.list_names(folder, ".parquet")
        names = self._pool.read_footer(f"{folder}/{files[0]}").schema.to_arrow_schema().names if files else []
        return [name for name in names if name not in (UID_COLUMN, ERROR_COLUMN)]

    def _sample_origin(self, operator: Operator, column: str, name: str) -> Origin:
        if name in _PICTURE_KINDS:
            return Origin(kind=_PICTURE_KINDS[name], column=name)
        disk_name = _DISK_NAMES.get(name, name)
        if disk_name not in self._sample_columns:
            raise MissingColumnsError(
                f"operator {operator.sql_name!r} reads {name!r} as {column!r}, and the pool's samples have no such column; they have "
                f"{', '.join(sorted(SQL_NAMES.get(c, c) for c in self._sample_columns))}. For an annotation write "
                f"bind.{column}=LABEL.COLUMN"
            )
        return Origin(kind="sample", column=disk_name)

    def _label_origin(self, operator: Operator, column: str, label: str, name: str) -> Origin:
        other = self._by_label.get(label)
        if other is not None:
            planned = self.add(other)
            if name not in planned.operator.writes.names:
                raise _no_column(operator, column, label, name, planned.operator.writes.names)
            return _annotation_origin(planned, name)
        target = self._pool_labels.get(label)
        if target is None:
            known = ", ".join(sorted(self._pool_labels)) or "none yet"
            raise MissingColumnsError(
                f"operator {operator.sql_name!r} reads {label}.{name} as {column!r}, and the pool has no annotation {label!r} (it has "
                f"{known}); make it with `winnow annotate --pool {self._pool.root} OPERATOR:label={label}`"
            )
        return self._stored_origin(operator, column, label, name, target)

    def _stored_origin(self, operator: Operator, column: str, label: str, name: str, target: LabelTarget) -> Origin:
        folder = self._pool.annotation_folder(target.operator, target.fingerprint)
        files = self._pool.list_names(folder, ".parquet")
        headers = {shard: self._pool.shard_header(shard) for shard in self._pool.shards()}
        header = (
            self._pool.annotation_header(target.operator, target.fingerprint, int(files[0].split(".")[0]))
            if files
            else None
        )
        follows_pool = header is not None and bool(header.pool_digest)
        digest = digest_headers(headers) if follows_pool else ""
        missing = self._pool.missing(target.operator, target.fingerprint, headers, digest)
        if missing:
            raise MissingColumnsError(
                f"operator {operator.sql_name!r} reads {label}.{name}, which {len(missing)} of {len(headers)} shards do not have yet; "
                f"complete it with `winnow annotate --pool {self._pool.root} {target.operator}:label={label}` and its parameters"
            )
        schema = self._pool.read_footer(f"{folder}/{files[0]}").schema.to_arrow_schema()
        names = [known for known in schema.names if known not in (UID_COLUMN, ERROR_COLUMN)]
        if name not in names:
            raise _no_column(operator, column, label, name, names)
        return Origin(
            kind="annotation",
            column=name,
            operator=target.operator,
            fingerprint=target.fingerprint,
            label=label,
            follows_pool=follows_pool,
        )


def _annotation_origin(planned: Planned, column: str) -> Origin:
    return Origin(
        kind="annotation",
        column=column,
        operator=planned.operator.name,
        fingerprint=planned.fingerprint,
        label=planned.labels[0],
        follows_pool=planned.follows_pool,
    )


def _no_column(operator: Operator, column: str, label: str, name: str, names: Sequence[str]) -> MissingColumnsError:
    return MissingColumnsError(
        f"operator {operator.sql_name!r} reads {label}.{name} as {column!r}, and {label!r} has no column {name!r}; it has "
        f"{', '.join(names)}"
    )


def _check_bind(operator: Operator) -> None:
    # An input of a required operator may be bound as well: `requires` hands it on.
    known = set(operator.reads).union(*(other.reads for other in operator.requires()))
    unknown = sorted(set(operator.bind) - known)
    if unknown:
        raise InputError(
            f"operator {operator.sql_name!r} binds {unknown[0]!r}, which is none of its inputs: {', '.join(sorted(known))}"
        )


def _check_labels(pool: Pool, plan: Sequence[Planned]) -> None:
    owners: dict[str, Planned] = {}
    existing = pool.labels()
    for planned in plan:
        for label in planned.labels:
            if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS:
                raise InputError(
                    f"label {label!r} cannot be used in SQL; take lower-case letters, digits and underscores, and none of "
                    f"{', '.join(sorted(_RESERVED_LABELS))}"
                )
            other = owners.setdefault(label, planned)
            if other is not planned:
                raise InputError(
                    f"label {label!r} would mean two annotations: {_describe(other)} and {_describe(planned)}; give one of them "
                    f"another with label=NAME"
                )
            held = existing.get(label)
            if held is not None and held.operator != planned.operator.name:
                raise InputError(
                    f"label {label!r} already names an annotation of {held.operator!r} in {pool.root}; give "
                    f"{planned.operator.name!r} another with label=NAME"
                )


def _describe(planned: Planned) -> str:
    return f"{planned.operator.name} ({planned.fingerprint[:12]})"
