"""Every operator on the worst rows: nothing crashes, errors are rows, and neither batch size nor order changes a value."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.annotate import annotate, parse_operator
from curate.columns import Input, Output
from curate.executor import Executor
from curate.models.generation import GenerationOperator
from curate.operator import Operator, PoolOperator, ShardOperator, discover
from curate.pool_work import PoolWork
from curate.store import Pool
from schemas.sample_loss import SAMPLE_LOSS_SCHEMA, SAMPLE_LOSSES_FILE
from schemas.uid import sample_uid
from tests.captioner import make_captioner
from tests.contract import make_inputs, run
from tests.hostile import captions, hostile_rows, pictures
from tests.model import make_checkpoint
from tests.pool import Row, make_rows, write_shard

# What reads a model's answers is shown hostile ones where it is tested, beside a server that gives them.
ROW_OPERATORS = sorted(
    name
    for name, cls in discover().items()
    if issubclass(cls, ShardOperator) and not issubclass(cls, GenerationOperator)
)
POOL_OPERATORS = sorted(name for name, cls in discover().items() if issubclass(cls, PoolOperator))
# Columns that the operators here do not write: made captions, labels of data sets.
STAND_INS = {"recaption": "alt_text", "label": "alt_text", "recaption_embedding": "text_embedding"}
# Floats of a model depend a little on the batch they are computed in; half precision rounds that to its last place.
TOLERANCE = 3e-3
# A sample that training never drew has no loss, which is no failure of the sample.
SILENT = {"noise_probability"}


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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ray_session: Executor) -> World:
    """Write a tiny model, metadata, targets, references and losses."""
    folder = tmp_path_factory.mktemp("world")
    evaluation = Pool(folder / "evaluation")
    write_shard(evaluation, 0, make_rows(12, seed=3))
    annotate(evaluation, [parse_operator(name) for name in ("perceptual_hash", "colour_layout")], executor=ray_session)
    (folder / "metadata.txt").write_text("cat\ndog\na\n\U0001f600\n\u732b\nblack cat\n", encoding="utf-8")
    np.save(folder / "targets.npy", np.eye(24, dtype=np.float32)[:5])
    uids = [sample_uid(row.url, row.caption) for row in hostile_rows()]
    losses = {"uid": uids, "loss": np.linspace(0, 3, len(uids)), "num_draws": [1] * len(uids)}
    pq.write_table(pa.table(losses).cast(SAMPLE_LOSS_SCHEMA), folder / SAMPLE_LOSSES_FILE)
    files = {
        "model": str(make_checkpoint(folder / "model")),
        "generative_score.model": str(make_captioner(folder / "captioner", "git")),
        "against": str(evaluation.root),
        "metadata": str(folder / "metadata.txt"),
        "targets": str(folder / "targets.npy"),
        "labels": str(folder / "targets.npy"),
        "losses": str(folder / SAMPLE_LOSSES_FILE),
    }
    return World(files)


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
            found = _annotate(source.world.make(pool_operator), source)
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


def _annotate(operator: Operator, source: Source, *, order: np.ndarray | None = None) -> pa.Table:
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


def _check_rows(operator: Operator, columns: dict[str, pa.Array], errors: list[str | None], num_rows: int) -> None:
    """What holds of any output: a value or null for each row, and where everything is null, a reason."""
    assert len(errors) == num_rows
    for column in operator.writes:
        values = columns[column.name]
        assert values.type == column.type
        assert len(values) == num_rows
        if pa.types.is_floating(column.type):
            numbers = values.drop_null().to_numpy(zero_copy_only=False)
            assert np.isfinite(numbers).all(), f"{operator.name}: {column.name} is not finite"
    for row in range(num_rows if operator.name not in SILENT else 0):
        if not any(columns[name][row].is_valid for name in operator.writes.names):
            assert errors[row], f"{operator.name}: row {row} is all null and does not say why"


def hostile_tables() -> dict[str, Callable[[], list[Row]]]:
    """Return what pool-wide operators are shown, by name."""
    gone = hostile_rows()[len(captions())]
    return {
        "hostile rows": hostile_rows,
        "one row": lambda: hostile_rows()[-1:],
        "one failed row": lambda: [gone],
        "no usable row": lambda: [
            Row(url=f"https://example.org/{n}", caption=None, image=b"no picture") for n in range(4)
        ],
        "one picture many times": lambda: [
            Row(url=f"https://example.org/{n}", caption="", image=pictures()["black"]) for n in range(20)
        ],
    }


@pytest.fixture(scope="module")
def hostile(world: World) -> Source:
    return Source(world, hostile_rows())


@pytest.mark.parametrize("name", ROW_OPERATORS)
def test_row_operators(name: str, world: World, hostile: Source) -> None:
    operator = world.make(name)
    assert isinstance(operator, ShardOperator)
    inputs, num_rows = hostile.inputs(operator), len(hostile.rows)
    output = run(operator, inputs, num_rows)
    _check_rows(operator, output.columns, output.errors, num_rows)
    for size in (1, 4):
        _assert_same(operator, output, run(operator, inputs, num_rows, batch_size=size))


@pytest.mark.parametrize("table", hostile_tables())
@pytest.mark.parametrize("name", POOL_OPERATORS)
def test_pool_operators(name: str, table: str, world: World) -> None:
    operator, source = world.make(name), Source(world, hostile_tables()[table]())
    found = _annotate(operator, source)
    errors = found.column("error").to_pylist() if "error" in found.column_names else [None] * found.num_rows
    columns = {name: found.column(name).combine_chunks() for name in operator.writes.names}
    _check_rows(operator, columns, errors, len(source.rows))
    assert found.column("uid").to_pylist() == source.column("uid").values.to_pylist()
    order = np.random.default_rng(0).permutation(len(source.rows))
    assert found.equals(_annotate(operator, source, order=order)), f"{name} depends on the order in which rows arrive"


def _assert_same(operator: Operator, first: Output, second: Output) -> None:
    assert first.errors == second.errors
    for written in operator.writes:
        left, right = first.columns[written.name], second.columns[written.name]
        if left.equals(right):
            continue
        for row, (one, other) in enumerate(zip(left.to_pylist(), right.to_pylist(), strict=True)):
            if one != other:
                gap = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max()
                assert gap <= TOLERANCE, (
                    f"{operator.name}: {written.name} of row {row} depends on the batch: {one!r}, {other!r}"
                )
