"""clip-retrieval's embedding folders; embedding-reader reads them where it is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate.executor import Executor
from curate.store import Pool
from pipelines.export.clip_retrieval import export
from pipelines.export.source import open_source, require_selection
from pipelines.export.target import ExportReport
from schemas.errors import InputError, MissingColumnsError
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import embed, make_dataset, make_selections, read_vectors

SKIPPED = 2


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = make_selections(tmp_path_factory.mktemp("clip_retrieval") / "pool")
    embed(pool, "image", "image_embedding", seed=1, skip=SKIPPED)
    embed(pool, "text", "text_embedding", seed=2)
    return pool


def run(pool: Pool, out: Path, executor: Executor, source: str = "mixed", **settings: Any) -> ExportReport:
    selection = require_selection(open_source(source, pool.root), "clip-retrieval", pool.root)
    return export(selection, str(out), executor=executor, progress=SilentProgress(), **settings)


def test_row_r_of_the_three_files_is_the_same_sample(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    report = run(pool, tmp_path / "out", ray_session, shard_size=10)
    images, texts = read_vectors(pool, "image", "image_embedding"), read_vectors(pool, "text", "text_embedding")
    captions = {
        row["uid"]: row for shard in pool.shards() for row in pool.read_table(pool.shard_parquet(shard)).to_pylist()
    }
    assert sorted(path.name for path in (tmp_path / "out/img_emb").iterdir()) == [f"img_emb_{n}.npy" for n in range(3)]
    seen = []
    for number in range(3):
        image = np.load(tmp_path / f"out/img_emb/img_emb_{number}.npy", allow_pickle=False)
        text = np.load(tmp_path / f"out/text_emb/text_emb_{number}.npy", allow_pickle=False)
        rows = pq.read_table(tmp_path / f"out/metadata/metadata_{number}.parquet").to_pylist()
        assert image.dtype == text.dtype == np.float16
        assert image.shape == text.shape == (len(rows), 8)
        for row, one, other in zip(rows, image, text, strict=True):
            assert np.array_equal(one, images[row["uid"]])
            assert np.array_equal(other, texts[row["uid"]])
            stored = captions[row["uid"]]
            assert (row["caption"], row["url"], row["sha256"]) == (
                stored["caption"] or "",
                stored["url"],
                stored["sha256"],
            )
            assert row["image_path"] == stored["key"]
            seen.append(row["uid"])
    assert len(seen) == len(set(seen)) == report.num_samples
    # The row that has no vector in each of three shards.
    assert report.num_left_out == 3
    assert list(pq.read_schema(tmp_path / "out/metadata/metadata_0.parquet").names)[:2] == ["image_path", "caption"]


def test_a_dataset_finds_its_selection_in_the_pool(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    dataset = make_dataset(pool, tmp_path, ray_session)
    run(pool, tmp_path / "one", ray_session, dataset.store.root)
    run(pool, tmp_path / "two", ray_session)
    for path in sorted((tmp_path / "one").glob("*/*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    with pytest.raises(InputError, match="reads annotations, which stay in the pool; give --pool DIR"):
        require_selection(dataset, "clip-retrieval")


def test_missing_embeddings_name_the_command(ray_session: Executor, tmp_path: Path) -> None:
    pool = make_selections(tmp_path / "pool")
    with pytest.raises(
        MissingColumnsError,
        match=r"has image_embedding; make it with\n  winnow annotate --pool .* 'clip_embedding:model=MODEL'",
    ):
        run(pool, tmp_path / "out", ray_session)
    embed(pool, "image", "image_embedding", seed=1, shards=(0, 2))
    with pytest.raises(
        MissingColumnsError,
        match=r"image has no current annotation of 1 of 3 shards \(00001 first\); run\n  winnow annotate",
    ):
        run(pool, tmp_path / "out", ray_session)
    embed(pool, "image", "image_embedding", seed=1)
    embed(pool, "text", "text_embedding", seed=2)
    embed(pool, "other", "text_embedding", seed=3)
    with pytest.raises(InputError, match=r"other\.text_embedding, text\.text_embedding are embeddings of different"):
        run(pool, tmp_path / "out", ray_session)
    with pytest.raises(MissingColumnsError, match=r"--caption is 'recap\.nothing', which is no text"):
        run(pool, tmp_path / "out", ray_session, text_embedding="text.text_embedding", caption="recap.nothing")
    report = run(pool, tmp_path / "out", ray_session, text_embedding="other.text_embedding", caption="recap.recaption")
    rows = pq.read_table(tmp_path / "out/metadata/metadata_0.parquet").to_pylist()
    assert {row["caption"][:9] for row in rows} == {"recaption"}
    assert report.num_left_out == 0


@pytest.mark.parametrize(("name", "folder"), [("image", "img_emb"), ("text", "text_emb")])
def test_embedding_reader_reads_them(pool: Pool, ray_session: Executor, tmp_path: Path, name: str, folder: str) -> None:
    """The reader that autofaiss and clip-retrieval's index use, over batches that do not end where files do."""
    reader = pytest.importorskip("embedding_reader")
    report = run(pool, tmp_path / "out", ray_session, shard_size=10)
    found = reader.EmbeddingReader(
        embeddings_folder=str(tmp_path / "out" / folder),
        metadata_folder=str(tmp_path / "out/metadata"),
        meta_columns=["uid", "caption", "url"],
        file_format="parquet_npy",
    )
    assert (found.count, found.dimension) == (report.num_samples, 8) == (24, 8)
    # Without the metadata, as autofaiss reads it.
    plain = reader.EmbeddingReader(embeddings_folder=str(tmp_path / "out" / folder), file_format="npy")
    assert plain.count == found.count
    vectors = read_vectors(pool, name, f"{name}_embedding")
    tables = [pool.read_table(pool.shard_parquet(shard), ["uid", "caption", "url"]) for shard in pool.shards()]
    rows = {row["uid"]: (row["caption"] or "", row["url"]) for table in tables for row in table.to_pylist()}
    seen = []
    for batch, metadata in found(batch_size=7):
        for vector, row in zip(batch, metadata.to_dict(orient="records"), strict=True):
            assert np.array_equal(vector.astype(np.float16), vectors[row["uid"]])
            assert (row["caption"], row["url"]) == rows[row["uid"]]
            seen.append(row["uid"])
    assert len(set(seen)) == len(seen) == found.count
