"""Any operator on any rows: its parameters filled in, and its inputs found, computed by other operators where need be."""

import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from curate.columns import Input
from curate.models.generation import GenerationOperator
from curate.operator import Operator, PoolOperator, ShardOperator, discover
from curate.pool_work import PoolWork
from schemas.uid import sample_uid
from tests.contract import make_inputs, run
from tests.pool import Row

# What reads a model's answers is shown hostile ones where it is tested, beside a server that gives them.
ROW_OPERATORS = sorted(
    name
    for name, cls in discover().items()
    if issubclass(cls, ShardOperator) and not issubclass(cls, GenerationOperator)
)
POOL_OPERATORS = sorted(name for name, cls in discover().items() if issubclass(cls, PoolOperator))
# Columns that the operators here do not write: made captions, labels of data sets.
STAND_INS = {
    "recaption": "alt_text",
    "label": "alt_text",
    "recaption_embedding": "text_embedding",
    "captions": "sub_captions",
}


@dataclass(frozen=True)
class World:
    """Files that operators take as parameters, by the name of the field, or of operator and field."""

    files: dict[str, str]

    def make(self, name: str) -> Operator:
        """Return an operator, its required parameters filled in."""
        cls = discover()[name]
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        # A head without weights scores by prompts, which need the model.
        wanted = {*needed, *({"model"} if name in ("aesthetic_score", "safety_score") else ())}
        missing = wanted - self.files.keys()
        assert not missing, (
            f"{name} needs {sorted(missing)}: give `World` such files, so that hostile rows can be shown to it"
        )
        return cls(**{key: self.files.get(f"{name}.{key}", self.files[key]) for key in wanted})

    def writer(self, column: str) -> ShardOperator:
        """Return the row operator that writes a column."""
        for name in ROW_OPERATORS:
            if column in discover()[name].writes.names:
                operator = self.make(name)
                assert isinstance(operator, ShardOperator)
                return operator
        raise AssertionError(f"no operator writes {column!r}: name a stand-in in STAND_INS")


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """Finds any column of some rows: a sample's own, or what the operators before say of them."""

    world: World
    rows: Sequence[Row]
    known: dict[str, Input] = field(default_factory=dict)

    def column(self, name: str) -> Input:
        """Return a column as an operator's input."""
        name = STAND_INS.get(name, name)
        if name not in self.known:
            self.known[name] = _find(self, name)
        return self.known[name]

    def inputs(self, operator: Operator) -> dict[str, Input]:
        """Return everything that an operator reads."""
        return {name: self.column(name) for name in operator.reads}

    def table(self, operator: Operator) -> pa.Table:
        """Return the rows as a pool-wide operator gets them."""
        count = len(self.rows)
        own = {
            "shard": pa.array([row // 9 for row in range(count)], pa.int32()),
            "row": pa.array([row % 9 for row in range(count)], pa.int32()),
            "uid": self.column("uid").values,
        }
        return pa.table(own | {name: _with_nulls(self.column(name)) for name in operator.reads})


def _find(source: Source, name: str) -> Input:
    rows = source.rows
    if name in {"alt_text", "image", "image_luma", "image_file", "image_file_bytes"}:
        return make_inputs(_Reader(name), rows)[name]
    own: dict[str, pa.Array] = {
        "uid": pa.array([sample_uid(row.url, row.caption) for row in rows]),
        "status": pa.array([row.status for row in rows]),
        "error_message": pa.array([row.error_message for row in rows], pa.string()),
        "sha256": pa.array([None if row.image is None else str(hash(row.image)) for row in rows], pa.string()),
        "original_width": pa.array([None if row.image is None else len(row.image) for row in rows], pa.int32()),
        "original_height": pa.array([None if row.image is None else 1 for row in rows], pa.int32()),
    }
    if name in own:
        return Input.from_column(own[name])
    for pool_operator in POOL_OPERATORS:
        if name in discover()[pool_operator].writes.names:
            found = annotate_pool(source.world.make(pool_operator), source)
            return Input.from_column(found.column(name))
    operator = source.world.writer(name)
    return run(operator, source.inputs(operator), len(rows)).as_input(name)


class _Reader:
    """Stands for an operator of one input."""

    def __init__(self, column: str) -> None:
        self.reads = (column,)


def _with_nulls(found: Input) -> pa.Array:
    column = found.select(np.ones(len(found.valid), bool))
    # DuckDB reads half precision from Parquet as FLOAT, and from Arrow not at all.
    return column.cast(pa.list_(pa.float32())) if column.type == pa.list_(pa.float16()) else column


def annotate_pool(operator: Operator, source: Source, *, order: np.ndarray | None = None) -> pa.Table:
    """Return what a pool-wide operator yields for the rows, which may arrive in another order."""
    assert isinstance(operator, PoolOperator)
    rows = source.table(operator)
    if order is not None:
        rows = rows.take(pa.array(order))
    with duckdb.connect() as connection, tempfile.TemporaryDirectory() as folder:
        tables = list(operator.annotate(connection.from_arrow(rows), PoolWork(Path(folder))))
    if not tables:
        return pa.table(
            {"uid": pa.array([], pa.string())} | {column.name: pa.array([], column.type) for column in operator.writes}
        )
    return pa.concat_tables(tables).combine_chunks()
