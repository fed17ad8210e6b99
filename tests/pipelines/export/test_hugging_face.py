"""Folders that `datasets.load_dataset` loads by their name alone, with the types that the card states."""

from pathlib import Path

import datasets
import pytest
import yaml

from curate.executor import Executor
from curate.store import Pool
from pipelines.export.hugging_face import export
from pipelines.export.source import DatasetSource
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import make_dataset, make_selections, read_rows


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_selections(tmp_path_factory.mktemp("hugging_face") / "pool")


@pytest.fixture(scope="module")
def source(pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> DatasetSource:
    columns = ("b32.clip_score", "words.caption_num_words")
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session, columns=columns)


@pytest.fixture(scope="module")
def folder(source: DatasetSource, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "folder"
    export(source, str(out), executor=ray_session, progress=SilentProgress(), shard_size=10)
    return out


def front_matter(folder: Path) -> dict[str, object]:
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    loaded: dict[str, object] = yaml.safe_load(front)
    return loaded


def test_the_folder_loads_with_the_types_of_its_card(source: DatasetSource, folder: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    rows = read_rows(source)
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["caption"] == datasets.Value("string")
    assert loaded.features["b32_clip_score"] == datasets.Value("float32")
    assert loaded.features["words_caption_num_words"] == datasets.Value("int32")
    assert loaded["uid"] == [row["uid"] for row in rows]
    assert loaded["caption"] == [row["alt_text"] for row in rows]
    assert loaded["recap_rewrite"] == [row["recap.rewrite"] for row in rows]
    assert loaded[0]["image"].size[0] > 0
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    assert [entry["bytes"] for entry in raw["image"]] == [row["image"] for row in rows]


def test_the_card_counts_what_is_there(source: DatasetSource, folder: Path) -> None:
    front = front_matter(folder)
    info = front["dataset_info"]
    assert isinstance(info, dict)
    assert info["splits"][0]["num_examples"] == source.num_samples
    assert info["download_size"] == sum(path.stat().st_size for path in folder.glob("data/*.parquet"))
    assert front["size_categories"] == ["n<1K"]
    assert "# mixed" in (folder / "README.md").read_text()


def test_it_streams_too(source: DatasetSource, folder: Path) -> None:
    stream = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert [row["uid"] for row in stream] == [row["uid"] for row in read_rows(source)]
