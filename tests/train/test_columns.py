from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import InputError
from tests.train.dataset_builder import make_samples, make_uid, reseal, write_dataset
from train.columns import SampleColumns, open_columns
from train.index import Dataset
from train.request import Column

COUNT = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("columns")
    return Dataset.open(str(write_dataset(root / "dataset", make_samples(COUNT))), cache=str(root / "cache"))


def write(path: Path, numbers: range, **columns: object) -> str:
    """Write a file with the uids of these samples."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"uid": [make_uid(number) for number in numbers], **columns}), path)
    return str(path)


def test_values_come_in_the_datasets_order(dataset: Dataset, tmp_path: Path) -> None:
    # Backwards, with samples of a larger pool around them.
    numbers = range(COUNT + 5, -1, -1)
    path = write(tmp_path / "scores.parquet", numbers, score=[float(number) for number in numbers])
    column = Column(name="score")
    found = open_columns(dataset, [column], [path])
    assert found.arrays[column.key].tolist() == [float(number) for number in range(COUNT)]
    assert found.take(np.array([3, 1]))[column.key].tolist() == [3.0, 1.0]


def test_an_operators_folder_is_read_whole(dataset: Dataset, tmp_path: Path) -> None:
    write(tmp_path / "operator" / "00000.parquet", range(12), a=[1.0] * 12)
    write(tmp_path / "operator" / "00001.parquet", range(12, COUNT), a=[2.0] * 8)
    other = write(tmp_path / "other.parquet", range(COUNT), b=[3.0] * COUNT)
    a, b = Column(name="a"), Column(name="b")
    found = open_columns(dataset, [a, b], [other, str(tmp_path / "operator")])
    assert found.arrays[a.key].tolist() == [1.0] * 12 + [2.0] * 8
    assert found.arrays[b.key].tolist() == [3.0] * COUNT


def test_files_of_one_folder_may_have_different_columns(dataset: Dataset, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.parquet", range(COUNT), **{name: [1.0] * COUNT}) for name in ("a", "b")]
    for files in (paths, paths[::-1]):
        found = open_columns(dataset, [Column(name="a"), Column(name="b")], files)
        assert len(found.arrays) == 2


def test_carried_columns_are_found_by_their_own_name(tmp_path: Path) -> None:
    samples = make_samples(4)
    folder = write_dataset(tmp_path / "dataset", samples)
    for name in ("00000.parquet",):
        table = pq.read_table(folder / name)
        for carried in ("tags.score", "one.other", "two.other"):
            table = table.append_column(carried, pa.array([1.5] * 4))
        pq.write_table(table, folder / name)
    reseal(folder)
    dataset = Dataset.open(str(folder), cache=str(tmp_path / "cache"))
    for name in ("score", "tags.score"):
        found = open_columns(dataset, [Column(name=name)], [])
        assert found.array(Column(name=name)).tolist() == [1.5] * 4
    with pytest.raises(InputError, match=r"'other', which .* the dataset has one\.other, two\.other: name one of them"):
        open_columns(dataset, [Column(name="other")], [])


def test_columns_of_the_sidecars_need_no_file(dataset: Dataset) -> None:
    column = Column(name="image_bytes")
    found = open_columns(dataset, [column], [])
    assert found.arrays[column.key].tolist() == dataset.table.size.tolist()


def test_vectors_keep_their_precision_and_width(dataset: Dataset, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(COUNT, 5)).astype(np.float16)
    column = Column(name="embedding", kind="vector")
    for kind in (pa.list_(pa.float16()), pa.list_(pa.float16(), 5)):
        path = write(tmp_path / "vectors.parquet", range(COUNT), embedding=pa.array(list(rows), kind))
        found = open_columns(dataset, [column], [path])
        np.testing.assert_array_equal(found.arrays[column.key], rows)
        assert found.arrays[column.key].dtype == np.float16
        assert found.widths == {column.key: 5}


def test_texts_are_numbered_by_frequency(dataset: Dataset, tmp_path: Path) -> None:
    words = [["dog", "cat"], ["dog"], None, ["rare", "dog"], ["cat", "cat"]] + [[]] * (COUNT - 5)
    path = write(
        tmp_path / "labels.parquet", range(COUNT), words=pa.array(words), name=["b", "a", None, "b"] + ["c"] * 16
    )
    many, one = Column(name="words", kind="labels", min_count=2), Column(name="name", kind="label")
    found = open_columns(dataset, [many, one], [path])
    assert found.take(np.arange(5))[many.key].tolist() == [[0, 1], [0, -1], [-1, -1], [0, -1], [1, -1]]
    assert found.arrays[one.key][:5].tolist() == [1, 2, -1, 1, 0]
    assert found.num_labels == {many.key: 2, one.key: 3}


def test_numbers_of_labels_and_lists_stay_as_they_are(dataset: Dataset, tmp_path: Path) -> None:
    ids, shares = [[4, 2]] + [[1]] * 19, [[0.75, 0.25]] + [[1.0]] * 19
    path = write(tmp_path / "soft.parquet", range(COUNT), ids=ids, shares=shares)
    labels, numbers = Column(name="ids", kind="labels"), Column(name="shares", kind="numbers")
    found = open_columns(dataset, [labels, numbers], [path])
    assert found.take(np.arange(2))[labels.key].tolist() == [[4, 2], [1, -1]]
    assert found.take(np.arange(2))[numbers.key].tolist() == [[0.75, 0.25], [1.0, 0.0]]
    assert found.num_labels == {labels.key: 5}


def test_partners_are_rows(dataset: Dataset, tmp_path: Path) -> None:
    others = [make_uid(7), None, make_uid(999), *[make_uid(0)] * 17]
    path = write(tmp_path / "partners.parquet", range(COUNT), other=others)
    column = Column(name="other", kind="uid")
    assert open_columns(dataset, [column], [path]).arrays[column.key][:4].tolist() == [7, -1, -1, 0]


def test_the_digest_is_that_of_the_values(dataset: Dataset, tmp_path: Path) -> None:
    column = Column(name="score")
    one = write(tmp_path / "one.parquet", range(COUNT), score=[1.0] * COUNT)
    same = write(tmp_path / "same.parquet", range(COUNT), score=[1] * COUNT)
    other = write(tmp_path / "other.parquet", range(COUNT), score=[2.0] * COUNT)
    digests = [open_columns(dataset, [column], [path]).digest for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert open_columns(dataset, [], [one]) == SampleColumns()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (Column(name="x"), [1.0] * 5 + [None] * 15, f"'x' has no value for 15 of 20 samples, {make_uid(5)} first"),
        (Column(name="x"), ["a"] * 20, "'x' must hold numbers, it holds string"),
        (Column(name="x", kind="vector"), [[1.0], [1.0, 2.0]] * 10, "'x' has vectors of "),
        (Column(name="x", kind="vector"), [1.0] * 20, "'x' must hold vectors, it holds double"),
        (Column(name="x", kind="label"), [-3] * 20, "'x' has the label -3; labels are 0 or more"),
        (Column(name="x", kind="labels", min_count=30), [["a"]] * 20, "no label of column 'x' is on 30 samples"),
        (Column(name="x", kind="label"), [0.5] * 20, "'x' must hold integers or texts, it holds 0.5"),
        (Column(name="x", kind="uid"), ["no uid"] * 20, "column 'x' has uids that are not 32 lower-case hex"),
        (Column(name="y"), [1.0] * 20, "reads the column 'y', which neither"),
    ],
)
def test_what_does_not_fit_is_refused(
    dataset: Dataset, tmp_path: Path, column: Column, values: object, message: str
) -> None:
    path = write(tmp_path / "values.parquet", range(COUNT), x=values)
    with pytest.raises(Exception, match=message):
        open_columns(dataset, [column], [path])


@pytest.mark.parametrize("shares", [[0.5], None, [0.5, 0.25, 0.25]])
def test_lists_that_belong_together_are_equally_long(
    dataset: Dataset, tmp_path: Path, shares: list[float] | None
) -> None:
    ids = Column(name="ids", kind="labels")
    probabilities = Column(name="probabilities", kind="numbers", as_long_as=ids)
    right = [[0.75, 0.25]] * COUNT
    lists = {"ids": [[1, 2]] * COUNT, "probabilities": right}
    found = open_columns(dataset, [ids, probabilities], [write(tmp_path / "right.parquet", range(COUNT), **lists)])
    assert found.take(np.array([7]))[probabilities.key].tolist() == [[0.75, 0.25]]
    path = write(
        tmp_path / "wrong.parquet", range(COUNT), ids=lists["ids"], probabilities=[*right[:7], shares, *right[8:]]
    )
    message = f"'probabilities' has {len(shares or ())} values for sample {make_uid(7)} and 'ids' has 2; they belong"
    with pytest.raises(InputError, match=message):
        open_columns(dataset, [ids, probabilities], [path])


def test_of_a_vector_for_each_crop_the_shown_ones_part_is_taken(dataset: Dataset, tmp_path: Path) -> None:
    boxes = [[row, crop, 8, 9] for row in range(COUNT) for crop in range(3)]
    vectors = [[float(row), float(crop)] for row in range(COUNT) for crop in range(3)]
    path = write(
        tmp_path / "crops.parquet",
        range(COUNT),
        boxes=pa.array(np.reshape(boxes, (COUNT, 12)).tolist(), pa.list_(pa.int32())),
        vectors=pa.array(np.reshape(vectors, (COUNT, 6)).tolist()),
    )
    whole, part = Column(name="vectors", kind="vector"), Column(name="vectors", kind="vector", of_crop=True)
    found = open_columns(dataset, [whole, part], [path], crop_boxes="boxes")
    taken = found.take(np.array([7, 3, 7]), seeds=[5, 9, 1 << 63])
    assert taken[part.key].tolist() == [[7, 2], [3, 0], [7, (1 << 63) % 3]]
    assert taken[whole.key].shape == (3, 6)
    assert found.widths == {whole.key: 6, part.key: 2}
    assert found.num_crops == 3
    assert found.crop_boxes is not None
    assert np.load(found.crop_boxes)[4].tolist() == [4, 0, 8, 9, 4, 1, 8, 9, 4, 2, 8, 9]
    assert set(taken) == {whole.key, part.key}  # boxes are for the loader


@pytest.mark.parametrize(
    ("boxes", "vectors", "crop_boxes", "message"),
    [
        ([0, 0, 1, 1], [1.0], "", "'vectors' is read as embeddings of stored crops, and the run shows none; name"),
        ([0, 0, 1], [1.0], "boxes", "'boxes' has 3 numbers a sample; a crop is four"),
        (
            [0, 0, 1, 1] * 2,
            [1.0] * 3,
            "boxes",
            "'vectors' has vectors of 3 numbers, which are no embeddings of 2 crops",
        ),
        ([0, 0, 1, 1], [1.0], "nothing", "reads the column 'nothing'"),
    ],
)
def test_crops_that_do_not_go_together(
    dataset: Dataset, tmp_path: Path, boxes: list[int], vectors: list[float], crop_boxes: str, message: str
) -> None:
    path = write(tmp_path / "crops.parquet", range(COUNT), boxes=[boxes] * COUNT, vectors=[vectors] * COUNT)
    request = Column(name="vectors", kind="vector", of_crop=True)
    with pytest.raises(InputError, match=message):
        open_columns(dataset, [request], [path], crop_boxes=crop_boxes)


def test_missing_files_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is neither a Parquet file nor a folder of them"):
        open_columns(dataset, [Column(name="x")], [str(tmp_path / "nowhere")])


def test_text_labels_have_names(dataset: Dataset, tmp_path: Path) -> None:
    path = write(
        tmp_path / "values.parquet", range(COUNT), x=["b", "a", "a", None] * 5, y=[["c"], ["c", "d"]] * 10, z=[3] * 20
    )
    texts, lists = Column(name="x", kind="label"), Column(name="y", kind="labels", min_count=15)
    found = open_columns(dataset, [texts, lists, Column(name="z", kind="label")], [path])
    assert found.label_names == {texts.key: ("a", "b"), lists.key: ("c",)}
    assert found.array(texts)[:4].tolist() == [1, 0, 0, -1]
