"""The contract of a run's losses by sample, and what is said of files that break it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import InputError
from schemas.sample_loss import (
    SAMPLE_LOSS_SCHEMA,
    SAMPLE_LOSSES_FILE,
    check_sample_losses,
    find_sample_losses,
    read_sample_losses,
)

UID = "0" * 31


def table(**changes: list[Any]) -> pa.Table:
    rows: dict[str, list[Any]] = {
        "uid": [f"{UID}{n}" for n in range(3)],
        "loss": [0.5, 2.0, None],
        "num_draws": [1, 4, 0],
    }
    return pa.table(rows | changes, schema=SAMPLE_LOSS_SCHEMA)


def test_a_file_is_found_by_its_run_or_by_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no sample_losses\.parquet; give the folder of a run"):
        find_sample_losses(tmp_path)
    with pytest.raises(InputError, match="none' do not exist"):
        find_sample_losses(tmp_path / "none")
    pq.write_table(table(), tmp_path / SAMPLE_LOSSES_FILE)
    assert find_sample_losses(tmp_path) == find_sample_losses(str(tmp_path / SAMPLE_LOSSES_FILE))


def test_rows_come_back_whatever_else_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "losses.parquet"
    shuffled = table().select(["num_draws", "loss", "uid"]).append_column("note", pa.array(["a", "b", "c"]))
    pq.write_table(shuffled, path)
    (found,) = read_sample_losses(path)
    assert found.equals(table())


def test_large_files_come_in_parts_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    count = 300_000
    rows = pa.table(
        {"uid": [f"{n:032x}" for n in range(count)], "loss": [1.0] * count, "num_draws": [1] * (count - 1) + [-1]},
        schema=SAMPLE_LOSS_SCHEMA,
    )
    pq.write_table(rows, tmp_path / "x.parquet")
    parts = read_sample_losses(tmp_path / "x.parquet")
    assert next(parts).num_rows < count
    with pytest.raises(InputError, match=r"x\.parquet row 299999: num_draws is -1; it must be 0 or more"):
        list(parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uid": [f"{UID}0", "abc", f"{UID}2"]}, "f row 1: uid is 'abc'; it must be 32 lower-case hex"),
        ({"uid": [None, f"{UID}1", f"{UID}2"]}, "f row 0: uid is None"),
        ({"loss": [0.5, float("nan"), None]}, "f row 1: loss is nan; it must be a finite number"),
        ({"loss": [None, 2.0, None]}, "f row 0: loss is None; it must be a finite number"),
        ({"loss": [0.5, 2.0, 1.0]}, "f row 2: loss is 1.0; it must be null where num_draws is 0"),
        ({"num_draws": [1, None, 0]}, "f row 1: num_draws is None"),
    ],
)
def test_wrong_rows_are_named(changes: dict[str, list[Any]], message: str) -> None:
    check_sample_losses(table(), "f")
    with pytest.raises(InputError, match=message):
        check_sample_losses(table(**changes), "f")


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="f has no column 'loss'; a file of losses has uid, loss, num_draws"):
        check_sample_losses(table().drop(["loss"]), "f")
    with pytest.raises(InputError, match="f: loss is double; it must be float"):
        check_sample_losses(table().set_column(1, "loss", pa.array([0.5, 2.0, None])), "f")
    (tmp_path / "x").write_text("no parquet")
    with pytest.raises(InputError, match="x is no Parquet file"):
        next(read_sample_losses(tmp_path / "x"))
