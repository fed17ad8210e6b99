"""The inputs and outputs of operators on one chunk of rows: which rows have an input, why the others have not, and what came back.

Row rules: an operator sees only rows that have all its inputs (those it declares nullable aside); every other row becomes nulls and a
message. What an operator returns is checked against what it declares, batch by batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.operator import (
    IMAGE_COLUMN,
    IMAGE_FILE_BYTES_COLUMN,
    IMAGE_FILE_COLUMN,
    IMAGE_LUMA_COLUMN,
    Operator,
    ShardOperator,
)
from schemas.annotation import ERROR_COLUMN
from schemas.errors import ContractError

# Inputs whose reasons are whole messages already ("no image: HTTP Error 404", "Image decoding error: ...").
_PICTURE_COLUMNS = (IMAGE_COLUMN, IMAGE_LUMA_COLUMN, IMAGE_FILE_COLUMN, IMAGE_FILE_BYTES_COLUMN)


@dataclass(frozen=True, kw_only=True)
class Input:
    """A column of a chunk without its nulls: `values` has one entry for each row where `valid`, `reasons` says why a row has none."""

    values: pa.Array
    valid: np.ndarray
    reasons: Sequence[str | None]

    @classmethod
    def from_column(cls, column: pa.Array | pa.ChunkedArray, reasons: Sequence[str | None] | None = None) -> "Input":
        """Split a column with nulls; a null without a reason is just missing."""
        values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if values.null_count == 0:
            return cls(values=values, valid=np.ones(len(values), dtype=bool), reasons=[None] * len(values))
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        return cls(values=values.drop_null(), valid=valid, reasons=reasons or [None] * len(values))

    @classmethod
    def from_errors(cls, values: pa.Array, errors: Sequence[str | None]) -> "Input":
        """Take values that hold only the rows without an error."""
        return cls(values=values, valid=np.array([error is None for error in errors], dtype=bool), reasons=errors)

    @classmethod
    def concat(cls, parts: Sequence["Input"]) -> "Input":
        """Put consecutive parts together."""
        return cls(
            values=pa.concat_arrays([part.values for part in parts]),
            valid=np.concatenate([part.valid for part in parts]),
            reasons=[reason for part in parts for reason in part.reasons],
        )

    def slice(self, start: int, stop: int) -> "Input":
        """Return the rows from `start` up to `stop`."""
        first = int(np.count_nonzero(self.valid[:start]))
        valid = self.valid[start:stop]
        values = self.values.slice(first, int(np.count_nonzero(valid)))
        return Input(values=values, valid=valid, reasons=self.reasons[start:stop])

    def select(self, rows: np.ndarray) -> pa.Array:
        """Return the values of the rows where the mask `rows` is true; rows without a value are null."""
        if np.array_equal(rows, self.valid):
            return self.values
        positions = np.cumsum(self.valid) - 1
        missing = ~self.valid[rows]
        return self.values.take(pa.array(positions[rows], pa.int64(), mask=missing))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """An operator's input for one chunk, in batches of at most its batch size, and what is to be said of the rows left out."""

    tables: list[pa.Table]
    rows: np.ndarray  # mask over the chunk: those in `tables`
    errors: list[str | None]

    @classmethod
    def concat(cls, parts: Sequence["Batches"], size: int) -> "Batches":
        """Put consecutive parts together and cut them anew into batches of `size`: where parts ended does not show."""
        tables = [table for part in parts for table in part.tables]
        whole = pa.concat_tables(tables) if tables else pa.table({})
        return cls(
            tables=[whole.slice(start, size) for start in range(0, whole.num_rows, size)],
            rows=np.concatenate([part.rows for part in parts]),
            errors=[error for part in parts for error in part.errors],
        )


@dataclass(frozen=True, kw_only=True)
class Output:
    """An operator's columns for one chunk, a value or null for every row, and every row's error."""

    columns: dict[str, pa.Array]
    errors: list[str | None]

    @classmethod
    def concat(cls, parts: Sequence["Output"]) -> "Output":
        """Put consecutive parts together."""
        names = parts[0].columns
        return cls(
            columns={name: pa.concat_arrays([part.columns[name] for part in parts]) for name in names},
            errors=[error for part in parts for error in part.errors],
        )

    def slice(self, start: int, stop: int) -> "Output":
        """Return the rows from `start` up to `stop`."""
        columns = {name: values.slice(start, stop - start) for name, values in self.columns.items()}
        return Output(columns=columns, errors=self.errors[start:stop])

    def as_input(self, column: str) -> Input:
        """Return a column as another operator's input; a row that failed here says so there."""
        return Input.from_column(self.columns[column], self.errors)


def gather(operator: Operator, inputs: Mapping[str, Input], num_rows: int) -> Batches:
    """Return the rows that `operator` can work on, with the messages of the others."""
    required = [column for column in operator.reads if column not in operator.nullable]
    rows = np.ones(num_rows, dtype=bool)
    for column in required:
        rows &= inputs[column].valid
    errors: list[str | None] = [None] * num_rows
    for row in np.flatnonzero(~rows).tolist():
        column = next(column for column in required if not inputs[column].valid[row])
        errors[row] = _explain(column, inputs[column].reasons[row])
    table = pa.table({column: inputs[column].select(rows) for column in operator.reads})
    size = operator.resources.batch_size if isinstance(operator, ShardOperator) else max(num_rows, 1)
    tables = [table.slice(start, size) for start in range(0, int(rows.sum()), size)]
    return Batches(tables=tables, rows=rows, errors=errors)


def scatter(operator: Operator, batches: Batches, results: Sequence[Mapping[str, Any]]) -> Output:
    """Check what was returned for each batch and put it back where its rows were."""
    checked = [
        check_result(operator, result, table.num_rows) for result, table in zip(results, batches.tables, strict=True)
    ]
    is_whole = bool(batches.rows.all())
    positions = None
    if not is_whole:
        places = np.cumsum(batches.rows) - 1
        positions = pa.array(np.where(batches.rows, places, 0), pa.int64(), mask=~batches.rows)
    columns = {}
    for field in operator.writes:
        values = (
            pa.concat_arrays([columns[field.name] for columns, _ in checked]) if checked else pa.array([], field.type)
        )
        columns[field.name] = values if positions is None else values.take(positions)
    errors = list(batches.errors)
    returned = (error for _, batch_errors in checked for error in batch_errors)
    for row, error in zip(np.flatnonzero(batches.rows).tolist(), returned, strict=True):
        errors[row] = error
    return Output(columns=columns, errors=errors)


def check_result(
    operator: Operator, result: Mapping[str, Any], num_rows: int
) -> tuple[dict[str, pa.Array], list[str | None]]:
    """Return the declared columns as Arrow arrays and the errors of a batch of `num_rows`, or raise ContractError."""
    returned = [name for name in result if name != ERROR_COLUMN]
    lengths = {name: len(values) for name, values in result.items()}
    if sorted(returned) != sorted(operator.writes.names) or any(length != num_rows for length in lengths.values()):
        got = ", ".join(f"{name} for {length}" for name, length in lengths.items()) or "nothing"
        raise ContractError(f"{operator.name} must write {operator.writes.names} for {num_rows} rows, got {got}")
    columns = {field.name: _to_array(operator, field, result[field.name]) for field in operator.writes}
    errors = result.get(ERROR_COLUMN)
    if errors is None:
        return columns, [None] * num_rows
    listed = errors.to_pylist() if isinstance(errors, pa.Array | pa.ChunkedArray) else list(errors)
    wrong = next((error for error in listed if not (error is None or isinstance(error, str))), None)
    if wrong is not None:
        raise ContractError(f"{operator.name} must write {ERROR_COLUMN!r} as text or None, got {wrong!r}")
    return columns, listed


def _to_array(operator: Operator, field: pa.Field, values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        if values.type != field.type:
            raise ContractError(f"{operator.name} must write {field.name} as {field.type}, got {values.type}")
        return values
    try:
        if isinstance(values, np.ndarray) and values.ndim == 2 and pa.types.is_list(field.type):
            return _matrix_to_lists(values, field.type)
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise ContractError(f"{operator.name} must write {field.name} as {field.type}: {error}") from error


def _matrix_to_lists(values: np.ndarray, type: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type.value_type)
    offsets = np.arange(0, values.size + 1, values.shape[1] or 1, dtype=np.int32)[: len(values) + 1]
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=type)


def count_errors(errors: Sequence[str | None]) -> int:
    """Return how many rows have a message."""
    return sum(error is not None for error in errors)


def null_reasons(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """Return a stored error column as reasons."""
    return [None if error is None else str(error) for error in column.to_pylist()]


def _explain(column: str, reason: str | None) -> str:
    if reason is None:
        return f"no {column}"
    return reason if column in _PICTURE_COLUMNS else f"no {column}: {reason}"


def as_error_array(errors: Sequence[str | None]) -> pa.Array:
    """Return errors as the column of an annotation file."""
    if not any(errors):
        return pa.nulls(len(errors), pa.string())
    return pa.array(errors, pa.string())
