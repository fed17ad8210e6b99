"""DataCompDR's layout, read by `datasets` as the published example reads it."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds

from curate.executor import Executor
from curate.store import Pool
from pipelines.export.datacompdr import export
from pipelines.export.source import DatasetSource, open_source, require_selection
from pipelines.export.target import ExportReport
from schemas.errors import InputError, MissingColumnsError
from schemas.progress import SilentProgress
from tests.curate.pool_builder import annotate_shard
from tests.pipelines.export.datasets import embed, make_dataset, make_selections, read_rows, read_vectors

SYNTHETIC = {"recap.recaption": "synthetic.text_embedding"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = make_selections(tmp_path_factory.mktemp("datacompdr") / "pool")
    embed(pool, "image", "image_embedding", seed=1, skip=2)
    embed(pool, "text", "text_embedding", seed=2)
    embed(pool, "synthetic", "text_embedding", seed=3)
    return pool


@pytest.fixture(scope="module", params=[False, True], ids=["tars", "view"])
def source(
    request: pytest.FixtureRequest, pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory
) -> DatasetSource:
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session, view=request.param)


def run(source: DatasetSource, pool: Pool, out: Path, executor: Executor, **settings: Any) -> ExportReport:
    selection = require_selection(source, "datacompdr", pool.root)
    chosen = {"synthetic": SYNTHETIC, "text_embedding": "text.text_embedding", **settings}
    return export(source, str(out), selection=selection, executor=executor, progress=SilentProgress(), **chosen)


@pytest.fixture(scope="module")
def folder(source: DatasetSource, pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "folder"
    report = run(source, pool, out, ray_session, shard_size=15)
    assert report.num_left_out == 3
    return out


def test_members_hold_the_samples_own_captions_and_vectors(source: DatasetSource, pool: Pool, folder: Path) -> None:
    rows = {str(row["uid"]): row for row in read_rows(source)}
    vectors = {
        name: read_vectors(pool, name, f"{kind}_embedding")
        for name, kind in (("image", "image"), ("text", "text"), ("synthetic", "text"))
    }
    count = 0
    for sample in wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False):
        uid, row = sample["__key__"], rows[sample["__key__"]]
        assert sample["jpg"] == row["image"]
        assert sample["txt"].decode() == row["alt_text"]
        assert sample["url.txt"].decode() == row["url"]
        assert json.loads(sample["syn.json"]) == {"syn_text": [row["recap.recaption"]]}
        with np.load(io.BytesIO(sample["npz"]), allow_pickle=False) as arrays:
            assert np.array_equal(arrays["image_emb"], [vectors["image"][uid]])
            assert np.array_equal(arrays["text_emb"], [vectors["text"][uid], vectors["synthetic"][uid]])
        count += 1
    assert count == len(rows) - 3


def test_datasets_reads_it_as_the_published_example_does(source: DatasetSource, folder: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(folder / "*.tar"), split="train", cache_dir=str(tmp_path)
    )
    rows = {str(row["uid"]): row for row in read_rows(source)}
    assert len(loaded) == len(rows) - 3
    sample = loaded[0]
    (augmentation,) = json.loads(sample["paug.json"]["param_aug"])
    assert len(sample["npz"]["image_emb"]) == 1
    assert sample["npz"]["text_emb"][1 + 0] is not None
    assert sample["syn.json"]["syn_text"] == [rows[sample["__key__"]]["recap.recaption"]]
    crop, operations = augmentation
    width, height = sample["jpg"].size
    top, left, box_height, box_width = crop
    assert box_height == box_width == min(width, height)
    assert (top, left) == ((height - box_height) // 2, (width - box_width) // 2)
    assert operations == [[0, 0.0], [0, 0.0]]


CROPS = pa.schema([("crop_boxes", pa.list_(pa.int32())), ("crop_embeddings", pa.list_(pa.float16()))])


def test_crops_that_reinforce_stored(source: DatasetSource, pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    for shard in (0, 1, 2):
        random = np.random.default_rng(shard)
        boxes = [None if row == 2 else random.integers(0, 9, 12).tolist() for row in range(12)]
        vectors = [None if row == 2 else random.normal(size=24).astype(np.float16) for row in range(12)]
        columns = {"crop_boxes": boxes, "crop_embeddings": vectors}
        annotate_shard(pool, shard, "crops", columns, CROPS, operator="reinforce")
    report = run(source, pool, tmp_path / "out", ray_session, crops="crops")
    boxes, vectors = read_vectors(pool, "crops", "crop_boxes"), read_vectors(pool, "crops", "crop_embeddings")
    count = 0
    for sample in wds.WebDataset(sorted(map(str, (tmp_path / "out").glob("*.tar"))), shardshuffle=False):
        augmentations = json.loads(json.loads(sample["paug.json"])["param_aug"])
        own = boxes[sample["__key__"]].astype(int).reshape(3, 4).tolist()
        assert augmentations == [[box, [[0, 0.0], [0, 0.0]]] for box in own]
        with np.load(io.BytesIO(sample["npz"]), allow_pickle=False) as arrays:
            assert np.array_equal(arrays["image_emb"], vectors[sample["__key__"]].reshape(3, 8))
            assert arrays["text_emb"].shape == (2, 8)
        count += 1
    assert count == report.num_samples
    assert report.num_left_out == 3
    with pytest.raises(InputError, match=r"--image-embedding image\.image_embedding and --crops crops are two"):
        run(source, pool, tmp_path / "both", ray_session, crops="crops", image_embedding="image.image_embedding")
    with pytest.raises(
        MissingColumnsError, match=r"has no crops 'gone'; make them with\n.*'reinforce:model=MODEL,label=gone'"
    ):
        run(source, pool, tmp_path / "gone", ray_session, crops="gone")


def test_bytes_are_the_same_every_time(
    source: DatasetSource, pool: Pool, folder: Path, ray_session: Executor, tmp_path: Path
) -> None:
    run(source, pool, tmp_path / "again", ray_session, shard_size=15)
    for path in sorted(folder.glob("*.tar")):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_what_is_missing_is_named(source: DatasetSource, pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    wanted = [
        ({}, InputError, "needs synthetic captions with their embeddings; give --synthetic"),
        ({"recap.other": "a.b"}, InputError, "has no caption 'recap.other'; select it with `--caption recap.other=1`"),
        (
            {"recap.recaption": "gone.text_embedding"},
            MissingColumnsError,
            r"'clip_text_embedding:model=MODEL,bind.alt_text=recap.recaption,label=gone'",
        ),
    ]
    for synthetic, error, message in wanted:
        with pytest.raises(error, match=message):
            run(source, pool, tmp_path / "out", ray_session, synthetic=synthetic)
    other = make_selections(tmp_path / "other")
    assert open_source("mixed", other.root).num_samples
    embed(other, "image", "image_embedding", seed=1)
    embed(other, "text", "text_embedding", seed=2)
    with pytest.raises(MissingColumnsError, match=r"has no embedding 'synthetic\.text_embedding'"):
        run(source, other, tmp_path / "out", ray_session)
