from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.train.dataset_builder import make_samples, make_uid, write_dataset
from train import column_files
from train.column_files import column_names, open_column, open_weights
from train.index import Dataset
from train.ragged import Ragged
from train.request import Column

COUNT = 12
LABELS = Column(name="x", kind="labels")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("columns")
    return Dataset.open(str(write_dataset(root / "dataset", make_samples(COUNT))), cache=str(root / "cache"))


def write(path: Path, numbers: Sequence[int], values: object, **options: object) -> str:
    pq.write_table(pa.table({"uid": [make_uid(number) for number in numbers], "x": values}), path, **options)
    return str(path)


def lists_of(dataset: Dataset, column: Column, path: str) -> list[list[float]]:
    found = open_column(dataset.table, column, [path]).values
    assert isinstance(found, Ragged)
    return [found.values[start:stop].tolist() for start, stop in zip(found.ends, found.ends[1:], strict=False)]


def test_row_groups_in_any_order_make_the_same_column(dataset: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [list(rng.choice(["a", "b", "c", "d"], rng.integers(0, 4))) for _ in range(COUNT)]
    whole = write(tmp_path / "whole.parquet", range(COUNT), pa.array(words, pa.list_(pa.string())))
    order = rng.permutation(COUNT).tolist()
    mixed = write(
        tmp_path / "mixed.parquet",
        order,
        pa.array([words[number] for number in order], pa.list_(pa.string())),
        row_group_size=5,
    )
    assert lists_of(dataset, LABELS, whole) == lists_of(dataset, LABELS, mixed)
    one, other = (open_column(dataset.table, LABELS, [path]) for path in (whole, mixed))
    assert (one.digest, one.label_names) == (other.digest, other.label_names)


def test_blocks_of_rows_are_put_together(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_files, "_BLOCK", 5)
    values = [[number] * (number % 3) for number in range(COUNT)]
    path = write(tmp_path / "x.parquet", range(COUNT), values)
    assert lists_of(dataset, LABELS, path) == values
    first = open_column(dataset.table, Column(name="x", kind="label"), [path])
    assert first.values.tolist() == [number if number % 3 else -1 for number in range(COUNT)]  # type: ignore[union-attr]
    assert first.num_labels == COUNT


def test_a_column_is_made_once_and_again_when_its_file_changes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = Column(name="x")
    path = write(tmp_path / "x.parquet", range(COUNT), [1.5] * COUNT)
    first = open_column(dataset.table, column, [path])
    with monkeypatch.context() as patch:
        patch.setattr(column_files, "_make", lambda *_: pytest.fail("made again"))
        assert open_column(dataset.table, column, [path]).values.tolist() == [1.5] * COUNT  # type: ignore[union-attr]
    write(tmp_path / "x.parquet", range(COUNT), [2.5] * COUNT)
    assert open_column(dataset.table, column, [path]).values.tolist() == [2.5] * COUNT  # type: ignore[union-attr]
    assert first.values.tolist() == [1.5] * COUNT  # type: ignore[union-attr]  # still mapped


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([["b", "a", "b"], None, ["a", None]] * 4), [[1, 0], [], [0]] * 4),
        (pa.array([[3, 3, None], [], None] * 4), [[3, 3], [], []] * 4),
        (pa.array([[True], [False], None] * 4), [[1], [0], []] * 4),
        (pa.array(["b", "a", "a"] * 4).dictionary_encode(), [[1], [0], [0]] * 4),
        (pa.array([["a", "b"]] * COUNT, pa.list_(pa.string(), 2)), [[0, 1]] * COUNT),
        (pa.array([["a"]] * COUNT, pa.large_list(pa.large_string())), [[0]] * COUNT),
        (pa.nulls(COUNT), [[]] * COUNT),
        (pa.nulls(COUNT, pa.string()), [[]] * COUNT),
    ],
)
def test_labels_of_every_type(dataset: Dataset, tmp_path: Path, values: pa.Array, expected: list[list[int]]) -> None:
    assert lists_of(dataset, LABELS, write(tmp_path / "x.parquet", range(COUNT), values)) == expected


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("number", [1.0] * 5 + [float("nan")] + [1.0] * 6),
        ("number", [1.0] * 5 + [float("-inf")] + [1.0] * 6),
        ("vector", [[1.0, 2.0]] * 5 + [[1.0, float("inf")]] + [[1.0, 2.0]] * 6),
        ("vector", [[1.0, 2.0]] * 5 + [[None, 1.0]] + [[1.0, 2.0]] * 6),
    ],
)
def test_values_that_are_no_numbers_count_as_missing(
    dataset: Dataset, tmp_path: Path, kind: str, values: list[object]
) -> None:
    path = write(tmp_path / "x.parquet", range(COUNT), values)
    with pytest.raises(InputError, match=f"'x' has no value for 1 of 12 samples, {make_uid(5)} first"):
        open_column(dataset.table, Column(name="x", kind=kind), [path])  # type: ignore[arg-type]


def test_files_without_uids_or_of_another_kind_are_named(dataset: Dataset, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "bare.parquet")
    with pytest.raises(InputError, match=r"bare\.parquet has no column uid"):
        open_column(dataset.table, Column(name="x"), [str(tmp_path / "bare.parquet")])
    (tmp_path / "text.parquet").write_text("x,y")
    with pytest.raises(InputError, match=r"text\.parquet is no Parquet file"):
        column_names(str(tmp_path / "text.parquet"))


@pytest.mark.parametrize("row_group_size", [1, 20])
def test_a_sample_that_comes_twice_is_named(dataset: Dataset, tmp_path: Path, row_group_size: int) -> None:
    path = write(tmp_path / "x.parquet", [*range(COUNT), 3], [1.0] * (COUNT + 1), row_group_size=row_group_size)
    with pytest.raises(InputError, match=rf"x\.parquet has the uid {make_uid(3)} once more; keep one x per uid"):
        open_column(dataset.table, Column(name="x"), [path])


@pytest.mark.parametrize(
    ("kind", "values"),
    [("number", [0.5] * 7 + [1.5] + [0.5] * 4), ("numbers", [[0.5, 0.25]] * 7 + [[0.5, 1.5]] + [[]] * 4)],
)
def test_numbers_out_of_range_are_named(dataset: Dataset, tmp_path: Path, kind: str, values: list[object]) -> None:
    path = write(tmp_path / "x.parquet", range(COUNT), values)
    open_column(dataset.table, Column(name="x", kind=kind, least=0.0), [path])  # type: ignore[arg-type]
    message = rf"column 'x' has 1\.5 for {make_uid(7)}; its numbers are 0 or more and 1 or less"
    with pytest.raises(InputError, match=message):
        open_column(dataset.table, Column(name="x", kind=kind, least=0.0, most=1.0), [path])  # type: ignore[arg-type]


def test_making_a_column_is_shown(dataset: Dataset, tmp_path: Path) -> None:
    shown: list[tuple[object, ...]] = []

    class Recorder(SilentProgress):
        def start(self, stage: str, total: int | None, unit: str) -> None:
            shown.append((stage, total, unit))

        def advance(self, amount: int, **fields: str) -> None:
            shown.append((amount,))

    path = write(tmp_path / "x.parquet", range(COUNT + 2), [0.0] * (COUNT + 2), row_group_size=8)
    for _ in range(2):
        open_column(dataset.table, Column(name="x"), [path], progress=Recorder())
        assert shown == [("column x", COUNT, "samples"), (8,), (4,)]


def test_weights_are_read_in_the_datasets_order(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    numbers = list(range(COUNT + 3))[::-1]
    table = pa.table({"uid": [make_uid(number) for number in numbers], "weight": numbers})
    pq.write_table(table, path, row_group_size=4)
    assert open_weights(dataset.table, str(path)).tolist() == list(range(COUNT))
    pq.write_table(pa.concat_tables([table, table.slice(14)]), path, row_group_size=4)
    with pytest.raises(InputError, match=r"has the uid .* once more; keep one weight per uid"):
        open_weights(dataset.table, str(path))
    pq.write_table(table.set_column(1, "weight", pa.array(["1"] * len(numbers))), path)
    with pytest.raises(InputError, match="has weights of type string; they must be numbers"):
        open_weights(dataset.table, str(path))
