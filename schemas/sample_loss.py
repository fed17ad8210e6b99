"""The trainer's losses by sample: a file of a run that says which pairs a model could not learn.

`<run>/sample_losses.parquet` has a row for every sample that was drawn, in any order. A sample that was never drawn has no row, or one
of 0 draws and no loss. Hard or wrong pairs keep a high loss; NLIP and NEVLP tell them apart by it.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import InputError

SAMPLE_LOSSES_FILE = "sample_losses.parquet"
SAMPLE_LOSS_SCHEMA = pa.schema([
    pa.field("uid", pa.string()),  # each at most once
    pa.field(
        "loss", pa.float32()
    ),  # mean contrastive loss of the sample over its draws, finite; null where it was never drawn
    pa.field("num_draws", pa.int32()),  # how often it was drawn, 0 and up
])

_BATCH_ROWS = 1 << 17
_UID_PATTERN = "^[0-9a-f]{32}$"


def find_sample_losses(run_or_file: str | Path) -> Path:
    """Return the file of losses of a run's folder, or the file itself; raises InputError where there is none."""
    path = Path(run_or_file)
    if path.is_file():
        return path
    if (path / SAMPLE_LOSSES_FILE).is_file():
        return path / SAMPLE_LOSSES_FILE
    if path.is_dir():
        raise InputError(
            f"{path} holds no {SAMPLE_LOSSES_FILE}; give the folder of a run that recorded its losses by sample, or such a file"
        )
    raise InputError(f"losses {str(path)!r} do not exist; give the folder of a run, or its {SAMPLE_LOSSES_FILE}")


def read_sample_losses(path: str | Path) -> Iterator[pa.Table]:
    """Yield the rows of a file of losses, some hundred thousand at a time, checked; raises InputError naming the row that is wrong.

    That a uid is there twice shows only in the whole file, and is for the reader to find.
    """
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is no Parquet file: {error}") from error
    with file:
        _check_columns(file.schema_arrow, path)
        start = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=SAMPLE_LOSS_SCHEMA.names):
            table = pa.Table.from_batches([batch]).select(SAMPLE_LOSS_SCHEMA.names).cast(SAMPLE_LOSS_SCHEMA)
            check_sample_losses(table, str(path), start)
            start += table.num_rows
            yield table


def check_sample_losses(table: pa.Table, source: str, first_row: int = 0) -> None:
    """Raise InputError where a row breaks the contract; `source` and `first_row` say where the table is from."""
    _check_columns(table.schema, source)
    uids, losses, draws = (table.column(name).combine_chunks() for name in SAMPLE_LOSS_SCHEMA.names)
    is_drawn = pc.greater(draws, 0)
    is_finite = pc.fill_null(pc.is_finite(losses), False)
    problems = (
        (uids, pc.invert(pc.match_substring_regex(uids, _UID_PATTERN)), "it must be 32 lower-case hex characters"),
        (draws, pc.less(draws, 0), "it must be 0 or more"),
        (losses, pc.and_(is_drawn, pc.invert(is_finite)), "it must be a finite number where the sample was drawn"),
        (losses, pc.and_(pc.invert(is_drawn), pc.is_valid(losses)), "it must be null where num_draws is 0"),
    )
    for name, (values, is_wrong, rule) in zip(("uid", "num_draws", "loss", "loss"), problems, strict=True):
        # A null uid or count makes the comparison null, which is as wrong.
        row = pc.index(pc.fill_null(is_wrong, True), True).as_py()
        if row >= 0:
            raise InputError(f"{source} row {first_row + row}: {name} is {values[row].as_py()!r}; {rule}")


def _check_columns(schema: pa.Schema, source: str | Path) -> None:
    for field in SAMPLE_LOSS_SCHEMA:
        if field.name not in schema.names:
            raise InputError(
                f"{source} has no column {field.name!r}; a file of losses has {', '.join(SAMPLE_LOSS_SCHEMA.names)}"
            )
        found = schema.field(field.name).type
        if found != field.type and not (pa.types.is_string(field.type) and pa.types.is_large_string(found)):
            raise InputError(f"{source}: {field.name} is {found}; it must be {field.type}")
