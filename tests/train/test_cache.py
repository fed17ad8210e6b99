from pathlib import Path

import numpy as np
import pytest

from schemas.dataset import DatasetIndex
from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import make_samples, make_uid, reseal, write_dataset
from train.cache import find_tables, open_table
from train.made_once import remove_folder


def _index(folder: Path) -> tuple[DatasetIndex, list[str]]:
    index = DatasetIndex.from_json((folder / "index.json").read_text(), path="index")
    return index, [str(folder / entry.parquet) for entry in index.shards]


def test_many_shards_of_uneven_length_keep_their_rows(tmp_path: Path) -> None:
    samples = make_samples(53, size=(8, 8))
    index, locations = _index(write_dataset(tmp_path / "dataset", samples, shard_size=3))
    table = open_table(index, locations, ("rewrite", "alt_text"), str(tmp_path / "cache"))
    assert table.shard.tolist() == [number // 3 for number in range(53)]
    assert table.uids(np.arange(53)) == [sample.uid for sample in samples]
    assert [table.captions(row)[1] for row in range(53)] == [sample.captions["alt_text"] for sample in samples]
    assert [table.captions(row)[0] for row in range(53)] == [sample.captions["rewrite"] for sample in samples]


def test_a_column_that_a_later_shard_lacks_is_named(tmp_path: Path) -> None:
    index, locations = _index(write_dataset(tmp_path / "dataset", make_samples(20)))
    with pytest.raises(InputError, match=r"00000\.parquet has no column 'recap'; build the dataset again with it"):
        open_table(index, locations, ("recap",), str(tmp_path / "cache"))


def test_a_sidecar_that_is_gone_or_broken_is_stale(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset", make_samples(20))
    (folder / "00001.parquet").write_bytes(b"PAR1 broken")
    reseal(folder)
    index, locations = _index(folder)
    with pytest.raises(StaleDatasetError, match=r"00001\.parquet cannot be read"):
        open_table(index, locations, ("alt_text",), str(tmp_path / "cache"))
    (folder / "00001.parquet").unlink()
    with pytest.raises(StaleDatasetError, match=r"00001\.parquet cannot be read .*build the dataset again"):
        open_table(index, locations, ("alt_text",), str(tmp_path / "cache"))


def test_tables_that_hold_a_sample_are_found_and_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tables = []
    for name, numbers in (("first", range(5)), ("second", range(3, 9))):
        write_dataset(tmp_path / name, [make_samples(9)[number] for number in numbers], shard_size=3)
        index, sidecars = _index(tmp_path / name)
        tables.append(open_table(index, sidecars, ("alt_text",), str(cache)))
    assert find_tables(str(cache), [make_uid(1)]) == [tables[0].folder]
    assert find_tables(str(cache), [make_uid(4), make_uid(99)]) == sorted(table.folder for table in tables)
    assert find_tables(str(cache), [make_uid(99)]) == []
    assert find_tables(str(cache), []) == []
    assert find_tables(str(tmp_path / "none"), [make_uid(1)]) == []
    assert tables[1].uids(np.array([0])) == [make_uid(3)]  # mapped by now
    remove_folder(tables[1].folder)
    assert tables[1].uids(np.array([1])) == [make_uid(4)]
    # What a kill left of a removal is found whatever it held.
    half = cache / ".0123.abcd.removed.staging"
    half.mkdir()
    assert find_tables(str(cache), [make_uid(99)]) == [str(half)]
    remove_folder(str(half))
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(tables[0].folder).name]
