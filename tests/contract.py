"""What every operator must do, checked by one call from its test."""

import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.columns import Input, Output, gather, scatter
from curate.fingerprint import fingerprint as make_fingerprint
from curate.images import ImageError, decode, to_column
from curate.luma import to_luma, to_luma_column
from curate.operator import Operator, PoolOperator, ShardOperator
from curate.pool_work import PoolWork
from schemas.annotation import ERROR_COLUMN, UID_COLUMN
from tests.pool import FAILED_ROWS, Row, make_rows

NUM_ROWS = 23


def check_operator(
    operator: ShardOperator,
    *,
    fingerprint: str,
    pinned: ShardOperator | None = None,
    inputs: Mapping[str, Input] | None = None,
    tolerance: float = 0.0,
) -> Output:
    """Check the whole contract on the rows of `tests.pool` and return the output for a test of the values.

    `fingerprint` is pinned with the operator's version: whoever changes what an operator returns must raise its version, and pin anew.
    `pinned` is the operator it belongs to where that cannot be `operator` itself (weights made in the test). `inputs` stand in for
    columns that samples do not have. `tolerance` is how much a value may depend on the batch it is computed in.
    """
    check_declaration(operator, pinned or operator, fingerprint)
    columns = dict(inputs or make_inputs(operator))
    num_rows = len(next(iter(columns.values())).valid)
    output = run(operator, columns, num_rows)
    for field in operator.writes:
        values = output.columns[field.name]
        assert values.type == field.type
        assert len(values) == num_rows
    _check_missing_rows(operator, columns, output)
    for size in (1, 3):
        _assert_equal(operator, output, run(operator, columns, num_rows, batch_size=size), tolerance)
    _check_empty(operator, columns)
    return output


def check_declaration(operator: Operator, pinned: Operator, fingerprint: str) -> None:
    """Check what can be said without running: the pickle that Ray sends, the documentation, the pinned identity."""
    assert pickle.loads(pickle.dumps(operator)) == operator
    assert type(operator).__doc__, f"{operator.name} needs a docstring with ranges and cost"
    assert set(operator.nullable) <= set(operator.reads)
    found = make_fingerprint(pinned, {})
    assert found == fingerprint, (
        f"{operator.name} has fingerprint {found}: if it returns something else now, raise its version, say so in the changelog, and pin "
        f"this value; if not, something that does not matter went into its identity"
    )


def check_pool_operator(operator: PoolOperator, *, fingerprint: str, rows: pa.Table) -> pa.Table:
    """Check a pool-wide operator on a table with shard, row, uid and its inputs, and return what it yields."""
    import duckdb

    check_declaration(operator, operator, fingerprint)
    with duckdb.connect() as connection, tempfile.TemporaryDirectory() as folder:
        work = PoolWork(Path(folder))
        # The order in which rows arrive must not matter.
        shuffled = rows.take(np.random.default_rng(0).permutation(rows.num_rows))
        tables = [
            pa.concat_tables(operator.annotate(connection.from_arrow(table), work)).combine_chunks()
            for table in (rows, shuffled)
        ]
        empty = list(operator.annotate(connection.from_arrow(rows.slice(0, 0)), work))
    assert tables[0].equals(tables[1])
    assert sum(table.num_rows for table in empty) == 0
    ordered = rows.sort_by([("shard", "ascending"), ("row", "ascending")])
    assert tables[0].column(UID_COLUMN).to_pylist() == ordered.column(UID_COLUMN).to_pylist()
    for field in operator.writes:
        assert tables[0].schema.field(field.name).type == field.type
    assert set(tables[0].column_names) <= {UID_COLUMN, ERROR_COLUMN, *operator.writes.names}
    return tables[0]


def run(
    operator: ShardOperator, inputs: Mapping[str, Input], num_rows: int, *, batch_size: int | None = None
) -> Output:
    """Run an operator on a chunk as the executor does, in batches of another size where one is given."""
    batches = gather(operator, inputs, num_rows)
    if batch_size:
        whole = pa.concat_tables(batches.tables) if batches.tables else pa.table({})
        tables = [whole.slice(start, batch_size) for start in range(0, whole.num_rows, batch_size)]
        batches = type(batches)(tables=tables, rows=batches.rows, errors=batches.errors)
    prepare, annotate = operator.prepare(), operator.load()
    prepared = [prepare(table) if prepare else table for table in batches.tables]
    assert [table.num_rows for table in prepared] == [table.num_rows for table in batches.tables]
    return scatter(operator, batches, [annotate(table) for table in prepared])


def make_inputs(operator: ShardOperator, rows: Sequence[Row] | None = None) -> dict[str, Input]:
    """Return the inputs of an operator for rows with pictures, failed downloads, a corrupt file and a missing caption."""
    rows = rows or make_rows(NUM_ROWS)
    made: dict[str, Input] = {}
    for column in operator.reads:
        if column == "alt_text":
            made[column] = Input.from_column(pa.array([row.caption for row in rows], pa.string()))
        elif column == "image_file":
            errors = [None if row.image is not None else f"no image: {row.error_message}" for row in rows]
            files = pa.array([row.image for row in rows if row.image is not None], pa.large_binary())
            made[column] = Input.from_errors(files, errors)
        elif column == "image_file_bytes":
            errors = [None if row.image is not None else f"no image: {row.error_message}" for row in rows]
            sizes = pa.array([len(row.image) for row in rows if row.image is not None], pa.int64())
            made[column] = Input.from_errors(sizes, errors)
        elif column in ("image", "image_luma"):
            made[column] = _decode(rows, column)
        else:
            raise AssertionError(f"samples have no column {column!r}: pass `inputs`")
    return made


def picture_input(pictures: Sequence[np.ndarray], column: str = "image") -> Input:
    """Return pictures, none missing, as the input `image` or `image_luma`."""
    if column == "image_luma":
        return Input.from_errors(to_luma_column([to_luma(picture) for picture in pictures]), [None] * len(pictures))
    return Input.from_errors(to_column(pictures), [None] * len(pictures))


def _decode(rows: Sequence[Row], column: str) -> Input:
    pictures, errors = [], list[str | None]()
    for row in rows:
        if row.image is None:
            errors.append(f"no image: {row.error_message}")
            continue
        try:
            pictures.append(decode(row.image))
            errors.append(None)
        except ImageError as error:
            errors.append(str(error))
    return Input.from_errors(picture_input(pictures, column).values, errors)


def _check_missing_rows(operator: ShardOperator, inputs: Mapping[str, Input], output: Output) -> None:
    required = [column for column in operator.reads if column not in operator.nullable]
    assert not required or any(not inputs[column].valid.all() for column in required), "no row lacks an input"
    for row in range(len(output.errors)):
        if all(inputs[column].valid[row] for column in required):
            continue
        assert output.errors[row], f"row {row} lacks an input and has no error"
        assert not any(values[row].is_valid for values in output.columns.values())
    if any(column in {"image", "image_luma", "image_file", "image_file_bytes"} for column in required):
        assert all("no image: " in str(output.errors[row]) for row in FAILED_ROWS if row < len(output.errors))


def _check_empty(operator: ShardOperator, inputs: Mapping[str, Input]) -> None:
    nothing = {
        column: Input(values=found.values.slice(0, 0), valid=np.zeros(5, dtype=bool), reasons=["gone"] * 5)
        for column, found in inputs.items()
    }
    if set(operator.reads) != set(operator.nullable):
        output = run(operator, nothing, 5)
        assert all(values.null_count == 5 for values in output.columns.values())
        assert all(error for error in output.errors)
    prepare, annotate = operator.prepare(), operator.load()
    table = pa.table({column: inputs[column].values.slice(0, 0) for column in operator.reads})
    result = annotate(prepare(table) if prepare else table)
    assert sorted(name for name in result if name != ERROR_COLUMN) == sorted(operator.writes.names)
    assert all(len(values) == 0 for values in result.values())


def _assert_equal(operator: ShardOperator, first: Output, second: Output, tolerance: float) -> None:
    assert first.errors == second.errors
    for name in operator.writes.names:
        left, right = first.columns[name].to_pylist(), second.columns[name].to_pylist()
        if not tolerance:
            assert left == right, f"{operator.name}: {name} depends on the batch"
            continue
        for mine, other in zip(left, right, strict=True):
            assert (mine is None) == (other is None)
            if isinstance(mine, str):
                assert mine == other, f"{operator.name}: {name} depends on the batch"
            elif mine is not None:
                # A null within a list is NaN here, and must be null in both.
                numbers, others = (np.asarray(value, dtype=np.float64) for value in (mine, other))
                assert np.allclose(numbers, others, rtol=0, atol=tolerance, equal_nan=True), (
                    f"{operator.name}: {name} depends on the batch"
                )


def column(output: Output, name: str) -> list[Any]:
    """Return a column as Python values."""
    return list(output.columns[name].to_pylist())
