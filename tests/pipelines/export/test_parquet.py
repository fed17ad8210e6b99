"""Parquet with pictures: read by `datasets` and by polars, the same pairs, captions and counts."""

import hashlib
import io
from pathlib import Path

import datasets
import polars
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.executor import Executor
from curate.store import Pool
from pipelines.export.parquet import export
from pipelines.export.source import DatasetSource, name_columns
from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import make_dataset, make_selections, read_rows


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_selections(tmp_path_factory.mktemp("parquet") / "pool")


@pytest.fixture(scope="module", params=[False, True], ids=["tars", "view"])
def source(
    request: pytest.FixtureRequest, pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory
) -> DatasetSource:
    columns = ("b32.clip_score", "words.caption_language")
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session, view=request.param, columns=columns)


@pytest.fixture(scope="module")
def folder(source: DatasetSource, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "folder"
    report = export(source, str(out), executor=ray_session, progress=SilentProgress(), shard_size=12)
    assert report.num_samples == source.num_samples
    return out


def test_datasets_reads_the_pairs_back(source: DatasetSource, folder: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    rows = read_rows(source)
    assert loaded["uid"] == [row["uid"] for row in rows]
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    for found, row in zip(raw, rows, strict=True):
        assert found["image"] == {"bytes": row["image"], "path": f"{row['uid']}.jpg"}
        assert found["caption"] == row["alt_text"]
        assert found["recap_recaption"] == row["recap.recaption"]
        assert found["recap_rewrite"] == row["recap.rewrite"]
        assert (found["url"], found["weight"]) == (row["url"], row["weight"])
        assert (found["b32_clip_score"], found["words_caption_language"]) == (
            row["b32.clip_score"],
            row["words.caption_language"],
        )


def test_pictures_are_decoded_by_datasets(source: DatasetSource, folder: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    with Image.open(io.BytesIO(read_rows(source)[0]["image"])) as picture:  # type: ignore[arg-type]
        assert loaded[0]["image"].size == picture.size


def test_another_reader_sees_the_same(source: DatasetSource, folder: Path) -> None:
    frame = polars.read_parquet(folder / "*.parquet")
    rows = read_rows(source)
    assert frame["caption"].to_list() == [row["alt_text"] for row in rows]
    digests = [hashlib.sha256(image["bytes"]).hexdigest() for image in frame["image"].to_list()]
    assert digests == [hashlib.sha256(row["image"]).hexdigest() for row in rows]  # type: ignore[arg-type]


def test_files_are_named_as_the_hub_names_them_and_cut_evenly(folder: Path, source: DatasetSource) -> None:
    paths = sorted(folder.glob("*.parquet"))
    assert [path.name for path in paths] == [f"train-{n:05d}-of-{len(paths):05d}.parquet" for n in range(len(paths))]
    counts = [pq.read_metadata(path).num_rows for path in paths]
    assert sum(counts) == source.num_samples
    assert max(counts) - min(counts) <= 1


def test_two_columns_of_one_name_are_refused() -> None:
    assert name_columns(["alt_text", "recap.recaption", "url"]) == {
        "caption": "alt_text",
        "recap_recaption": "recap.recaption",
        "url": "url",
    }
    with pytest.raises(InputError, match=r"'a\.b_c' and 'a_b\.c' would both be 'a_b_c'"):
        name_columns(["a.b_c", "a_b.c"])
