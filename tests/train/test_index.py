import json
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.dataset import DatasetIndex
from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import Sample, make_samples, make_uid, reseal, write_dataset
from train.index import Dataset, caption_columns


@pytest.fixture
def samples() -> list[Sample]:
    """Forty samples of different weights."""
    return make_samples(40, weights=[float(number % 4) for number in range(40)])


@pytest.fixture
def folder(tmp_path: Path, samples: list[Sample]) -> Path:
    """A dataset of three shards."""
    return write_dataset(tmp_path / "dataset", samples, captions={"alt_text": 0.5, "rewrite[*]": 0.5})


def _open(folder: Path) -> Dataset:
    return Dataset.open(str(folder), cache=str(folder.parent / "cache"))


def _rewrite_index(folder: Path, change: dict[str, object]) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_dataset_opens_by_folder_or_index(folder: Path, samples: list[Sample]) -> None:
    dataset = _open(folder)
    assert dataset.num_samples == 40
    assert dataset.table.uids(np.array([3, 39, 0])) == [samples[3].uid, samples[39].uid, samples[0].uid]
    assert dataset.uids.shape == (40, 16)
    np.testing.assert_array_equal(dataset.weights, [sample.weight for sample in samples])
    assert dataset.mixture.columns == ("alt_text", "rewrite")
    assert [dataset.table.captions(row) for row in (2, 17, 39)] == [
        [samples[row].captions["alt_text"], samples[row].captions["rewrite"]] for row in (2, 17, 39)
    ]
    by_file = Dataset.open(str(folder / "index.json"), cache=str(folder.parent / "cache"))
    assert by_file.fingerprint == dataset.fingerprint
    assert by_file.table.folder == dataset.table.folder


def test_images_lie_where_the_table_says(folder: Path, samples: list[Sample]) -> None:
    dataset = _open(folder)
    for row, sample in enumerate(samples):
        tar = Path(dataset.tars[dataset.table.shard[row]].location).read_bytes()
        start = int(dataset.table.offset[row])
        assert tar[start : start + int(dataset.table.size[row])] == sample.image


def test_the_columns_are_mapped_and_not_copied_to_workers(folder: Path) -> None:
    table = _open(folder).table
    assert isinstance(table.offset.base, np.memmap)
    table.captions(0)
    assert len(pickle.dumps(table)) < 1000
    assert pickle.loads(pickle.dumps(table)).captions(5) == table.captions(5)


def test_the_cache_is_made_once_and_again_for_other_columns(folder: Path) -> None:
    cache = folder.parent / "cache"
    _open(folder)
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*/*")}
    _open(folder)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*/*")} == made
    other = Dataset.open(str(folder), cache=str(cache), captions={"recaption": 1.0})
    assert other.mixture.columns == ("recaption", "alt_text")
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2
    assert other.fingerprint != _open(folder).fingerprint


def test_several_processes_make_the_cache_at_once(folder: Path) -> None:
    cache = folder.parent / "cache"
    (cache / "leftover").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        folders = pool.map(_open_and_tell, [str(folder)] * 6, chunksize=1)
    assert len(set(folders)) == 1
    assert not list(cache.glob(".*.staging"))


def _open_and_tell(folder: str) -> str:
    return _open(Path(folder)).table.folder


def test_what_a_dead_process_left_is_cleared_away(folder: Path) -> None:
    name = Path(_open(folder).table.folder).name
    cache = folder.parent / "second"
    abandoned = cache / f".{name}.123.abcd.staging"
    abandoned.mkdir(parents=True)
    (abandoned / "shard.npy").write_bytes(b"half")
    Dataset.open(str(folder), cache=str(cache))
    assert not abandoned.exists()


def test_views_over_tars_elsewhere_and_object_stores_open(folder: Path, samples: list[Sample]) -> None:
    index = DatasetIndex.from_json((folder / "index.json").read_text(), path="index")
    view = folder.parent / "view"
    view.mkdir()
    shards = [
        replace(entry, tar=str(folder / entry.tar), parquet=str(folder / entry.parquet)) for entry in index.shards
    ]
    (view / "index.json").write_text(replace(index, kind="view", shards=shards).to_json())
    assert _open(view).tars[1].location == str(folder / "00001.tar")

    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    remote = Dataset.open("memory://bucket/set", cache=str(folder.parent / "cache"))
    assert remote.tars[0].location == "memory:///bucket/set/00000.tar"
    assert remote.table.captions(0) == _open(folder).table.captions(0)
    remote.verify()
    memory.rm("/bucket", recursive=True)


def test_spellings_of_text_in_parquet_all_open(tmp_path: Path, samples: list[Sample]) -> None:
    folder = write_dataset(tmp_path / "dataset", samples, captions={"alt_text": 0.5, "rewrite[*]": 0.5})
    path = folder / "00001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("alt_text")
    table = table.set_column(at, "alt_text", table.column("alt_text").dictionary_encode())
    at = table.schema.get_field_index("rewrite")
    table = table.set_column(at, "rewrite", table.column("rewrite").cast(pa.large_list(pa.large_string())))
    pq.write_table(table, path)
    reseal(folder)
    assert caption_columns(str(path)) == ["alt_text", "recaption", "rewrite"]
    assert _open(folder).table.captions(20) == [samples[20].captions["alt_text"], samples[20].captions["rewrite"]]


def test_a_sidecar_that_was_changed_is_refused_even_where_it_had_been_read(folder: Path) -> None:
    before = _open(folder).weights.tolist()
    table = pq.read_table(folder / "00001.parquet")
    at = table.schema.get_field_index("weight")
    pq.write_table(table.set_column(at, "weight", pa.array([0.0] * table.num_rows)), folder / "00001.parquet")
    message = r"00001\.parquet has sha256 \w+, the index says \w+; build the dataset again, and change weights with train\.weights"
    with pytest.raises(StaleDatasetError, match=message):
        _open(folder)
    reseal(folder)
    assert _open(folder).weights.tolist() == [*before[:16], *[0.0] * 16, *before[32:]]


def test_verify_finds_a_changed_byte(folder: Path) -> None:
    dataset = _open(folder)
    dataset.verify()
    path = folder / "00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(StaleDatasetError, match=r"00001\.tar has sha256 \w+, the index says"):
        dataset.verify()


def test_counts_that_disagree_are_refused(folder: Path) -> None:
    _rewrite_index(folder, {"num_samples": 41})
    with pytest.raises(StaleDatasetError, match="says 41 samples, its shards add up to 40"):
        _open(folder)


def test_a_sidecar_of_another_length_is_refused(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "00001.parquet").slice(1), folder / "00001.parquet")
    reseal(folder)
    with pytest.raises(StaleDatasetError, match=r"00001\.parquet has 15 samples, the index says 16"):
        _open(folder)
    assert not [path for path in (folder.parent / "cache").iterdir() if path.is_dir()]


def test_wrong_inputs_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/index\.json does not exist; give the folder that `winnow build`"):
        Dataset.open(str(tmp_path / "nowhere"))
    with pytest.raises(
        InputError, match="caption column 'recap' is not in the dataset, which has alt_text, recaption, rewrite"
    ):
        Dataset.open(str(folder), captions={"recap": 1.0})
    table = pq.read_table(folder / "00000.parquet")
    uids = pa.array(["X" * 32, *table.column("uid").to_pylist()[1:]])
    pq.write_table(table.set_column(0, "uid", uids), folder / "00000.parquet")
    reseal(folder)
    with pytest.raises(StaleDatasetError, match="uids that are not 32 lower-case hex"):
        _open(folder)


def test_an_empty_dataset_is_refused(folder: Path) -> None:
    _rewrite_index(folder, {"num_samples": 0, "shards": []})
    with pytest.raises(InputError, match="holds no samples; loosen the selection"):
        _open(folder)


def test_weights_from_a_file_replace_those_of_the_build(folder: Path, tmp_path: Path, samples: list[Sample]) -> None:
    dataset = _open(folder)
    path = tmp_path / "weights.parquet"
    uids = [*(sample.uid for sample in samples[::-1]), make_uid(10_000)]
    pq.write_table(pa.table({"uid": uids, "weight": [float(number) for number in range(41)]}), path)
    weighted = dataset.with_weights(str(path))
    np.testing.assert_array_equal(weighted.weights, np.arange(40)[::-1])
    assert weighted.fingerprint != dataset.fingerprint
    assert weighted.table.folder == dataset.table.folder


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"uid": [make_uid(0)], "weight": [1.0]}, r"has no weight for 39 of the dataset's 40 samples, \w{32} first"),
        (
            {"uid": [make_uid(0)] * 2, "weight": [1.0, 2.0]},
            f"weights.parquet has the uid {make_uid(0)} once more; keep one weight per uid",
        ),
        ({"uid": [make_uid(0)]}, "needs the columns uid and weight, it has uid"),
        ({"uid": [make_uid(n) for n in range(40)], "weight": [None] + [1.0] * 39}, "1 rows without a weight"),
        ({"uid": [make_uid(n) for n in range(40)], "weight": [-1.0] + [1.0] * 39}, "weights are finite and 0 or more"),
    ],
)
def test_a_weights_file_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, table: dict[str, list[object]], message: str
) -> None:
    path = tmp_path / "weights.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(InputError, match=message):
        _open(folder).with_weights(str(path))
