"""Energon folders: the published layout, table by table; where megatron-energon is installed, its loader reads them."""

import json
import sqlite3
import struct
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from curate.executor import Executor
from curate.store import Pool
from pipelines.export.energon import export
from pipelines.export.source import DatasetSource
from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import make_dataset, make_selections, read_rows


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_selections(tmp_path_factory.mktemp("energon") / "pool")


@pytest.fixture(scope="module")
def source(pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> DatasetSource:
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session)


@pytest.fixture(scope="module")
def folder(source: DatasetSource, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "folder"
    run(source, out, ray_session, shard_size=10, val_shards=1, is_weighted=False)
    return out


def run(source: DatasetSource, out: Path, executor: Executor, **settings: Any) -> None:
    export(source, str(out), executor=executor, progress=SilentProgress(), **settings)


def test_info_and_splits_count_every_tar(folder: Path, source: DatasetSource) -> None:
    info = json.loads((folder / ".nv-meta/.info.json").read_text())
    splits = yaml.safe_load((folder / ".nv-meta/split.yaml").read_text())
    tars = sorted(path.name for path in folder.glob("*.tar"))
    assert list(info["shard_counts"]) == tars == splits["split_parts"]["train"] + splits["split_parts"]["val"]
    assert (len(splits["split_parts"]["val"]), splits["split_parts"]["test"], splits["exclude"]) == (1, [], [])
    assert sum(info["shard_counts"].values()) == source.num_samples
    dataset = yaml.safe_load((folder / ".nv-meta/dataset.yaml").read_text())
    assert dataset["sample_type"] == {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    assert dataset["field_map"] == {"image": "jpg", "caption": "txt"}


def test_the_tar_index_points_at_the_first_header_of_each_sample(folder: Path) -> None:
    for path in sorted(folder.glob("*.tar")):
        data = path.with_name(f"{path.name}.idx").read_bytes()
        offsets = struct.unpack(f"<{len(data) // 8}Q", data)
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            end = tar.offset
        assert list(offsets) == [*(member.offset for member in members if member.name.endswith(".jpg")), end]


def test_sqlite_finds_every_sample_and_every_member(folder: Path, source: DatasetSource) -> None:
    pictures = {str(row["uid"]): row["image"] for row in read_rows(source)}
    tars = sorted(folder.glob("*.tar"))
    with sqlite3.connect(f"file:{folder}/.nv-meta/index.sqlite?mode=ro", uri=True) as database:
        samples = database.execute("SELECT * FROM samples").fetchall()
        parts = database.execute(
            "SELECT s.tar_file_id, sample_key, part_name, content_byte_offset, content_byte_size, s.byte_offset, byte_size FROM samples s "
            "JOIN sample_parts USING (tar_file_id, sample_index)"
        ).fetchall()
        indexes = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert len(samples) == source.num_samples
    assert Counter(part[2] for part in parts) == dict.fromkeys(["jpg", "json", "txt"], source.num_samples)
    assert {"idx_samples_sample_key", "idx_samples_by_tar_and_idx", "idx_sample_parts_full"} <= indexes
    for tar, key, kind, offset, size, start, length in parts:
        data = tars[tar].read_bytes()
        assert start < offset
        assert offset + size <= start + length
        assert data[start : start + len(key)].decode() == key
        if kind == "jpg":
            assert data[offset : offset + size] == pictures[key.rpartition("-")[0]]


def test_bytes_and_uuid_are_the_same_every_time(
    source: DatasetSource, folder: Path, ray_session: Executor, tmp_path: Path
) -> None:
    run(source, tmp_path / "again", ray_session, shard_size=10, val_shards=1, is_weighted=False)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path


def test_validation_may_not_take_every_tar(source: DatasetSource, ray_session: Executor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 1 tars for validation leave none to train on"):
        run(source, tmp_path / "out", ray_session, val_shards=1)


def test_energon_loads_it(folder: Path, source: DatasetSource) -> None:
    energon = pytest.importorskip("megatron.energon")
    rows = {str(row["uid"]): row for row in read_rows(source)}
    found: Counter[str] = Counter()
    for split in ("train", "val"):
        # Its own defaults decode to tensors; captions and keys are what is compared here.
        dataset = energon.get_val_dataset(
            str(folder),
            split_part=split,
            worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=None,
        )
        for sample in energon.get_loader(dataset):
            uid = sample.__key__.rpartition("/")[2].rpartition("-")[0]
            found[uid] += 1
            assert sample.caption == rows[uid]["recap.recaption"]
            assert sample.image.shape[0] == 3
    assert found == dict.fromkeys(rows, 1)
