"""Every operator on the worst rows: nothing crashes, errors are rows, and neither batch size nor order changes a value."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.annotate import annotate, parse_operator
from curate.columns import Output
from curate.executor import Executor
from curate.operator import Operator, ShardOperator
from curate.operators.manual import DECISIONS_SCHEMA
from curate.store import Pool
from schemas.sample_loss import SAMPLE_LOSS_SCHEMA, SAMPLE_LOSSES_FILE
from schemas.uid import sample_uid
from tests.captioner import make_captioner
from tests.contract import run
from tests.hostile import captions, hostile_rows, pictures
from tests.model import make_checkpoint
from tests.pool import Row, make_rows, write_shard
from tests.wordnet import make_wordnet
from tests.world import POOL_OPERATORS, ROW_OPERATORS, Source, World, annotate_pool

# Floats of a model depend a little on the batch they are computed in; half precision rounds that to its last place.
TOLERANCE = 3e-3
# A sample that training never drew has no loss, and one that nobody looked at no decision, which is no failure of the sample.
SILENT = {"noise_probability", "manual"}


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
    (folder / "synsets.txt").write_text("n02084071\nn13863186\n")
    decided = {"uid": uids[:2], "decision": ["keep", "drop"]}
    pq.write_table(pa.table(decided).cast(DECISIONS_SCHEMA), folder / "decisions.parquet")
    files = {
        "decisions": str(folder / "decisions.parquet"),
        "wordnet": str(make_wordnet(folder / "wordnet")),
        "synsets": str(folder / "synsets.txt"),
        "model": str(make_checkpoint(folder / "model")),
        "generative_score.model": str(make_captioner(folder / "captioner", "git")),
        "against": str(evaluation.root),
        "metadata": str(folder / "metadata.txt"),
        "targets": str(folder / "targets.npy"),
        "labels": str(folder / "targets.npy"),
        "losses": str(folder / SAMPLE_LOSSES_FILE),
    }
    return World(files)


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
    found = annotate_pool(operator, source)
    errors = found.column("error").to_pylist() if "error" in found.column_names else [None] * found.num_rows
    columns = {name: found.column(name).combine_chunks() for name in operator.writes.names}
    _check_rows(operator, columns, errors, len(source.rows))
    assert found.column("uid").to_pylist() == source.column("uid").values.to_pylist()
    order = np.random.default_rng(0).permutation(len(source.rows))
    assert found.equals(annotate_pool(operator, source, order=order)), (
        f"{name} depends on the order in which rows arrive"
    )


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
