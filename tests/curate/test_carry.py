"""Columns that sidecars carry for training: values beside the right samples, in tars and in views, and what is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.annotate import annotate, parse_operator
from curate.build import BuildConfig, build
from curate.carry import find_columns
from curate.executor import Executor
from curate.select import Selection, select
from curate.store import Pool
from schemas.errors import InputError, MissingColumnsError
from schemas.progress import SilentProgress
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool
from tests.pool import make_rows, write_shard
from train.index import Dataset

VECTORS = pa.schema([("image_embedding", pa.list_(pa.float16(), 2)), ("cluster_id", pa.int32())])


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = annotated_pool(tmp_path / "pool")
    for shard in pool.shards():
        vectors = pa.array([[shard, row] for row in range(12)], pa.list_(pa.float32(), 2)).cast(
            VECTORS.field("image_embedding").type
        )
        columns = {"image_embedding": vectors, "cluster_id": [shard * 100 + row for row in range(12)]}
        annotate_shard(pool, shard, "clusters", columns, VECTORS, operator="clusters", order=range(11, -1, -1))
    select(pool, Selection(name="odd", rules={"odd": "caption_num_words % 2 = 1"}))
    return pool


def rows_of(folder: str) -> list[dict[str, object]]:
    return [row for path in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("is_view", [False, True])
def test_carried_values_stand_beside_their_samples(
    pool: Pool, ray_session: Executor, tmp_path: Path, *, is_view: bool
) -> None:
    names = ("clusters.cluster_id", "clusters.image_embedding", "num_occurrences")
    config = BuildConfig(shard_size=4, columns=names, view=is_view)
    report = build(pool, "odd", str(tmp_path / "out"), config, executor=ray_session, progress=SilentProgress())
    expected = {
        uid: (shard, row)
        for shard in pool.shards()
        for row, uid in enumerate(pool.read_table(pool.shard_parquet(shard), ["uid"])["uid"].to_pylist())
    }
    rows = rows_of(report.folder)
    assert len(rows) == report.num_samples > 10
    for found in rows:
        shard, row = expected[str(found["uid"])]
        assert found["clusters.cluster_id"] == shard * 100 + row
        assert found["clusters.image_embedding"] == [shard, row]
        assert found["num_occurrences"] == 1
    plain = build(
        *(pool, "odd", str(tmp_path / "out"), BuildConfig(shard_size=4, view=is_view)),
        executor=ray_session,
        progress=SilentProgress(),
    )
    assert plain.fingerprint != report.fingerprint
    assert Dataset.open(report.folder, cache=str(tmp_path / "cache")).num_samples == len(rows)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.x", r"no annotation 'nowhere'; it has b32, clusters, recap, siglip, words"),
        ("clusters.x", r"has no column 'x'; it has uid, image_embedding, cluster_id, error"),
        ("x", r"has no column 'x'; it has uid, "),
        ("weight", r"every sidecar has"),
    ],
)
def test_columns_that_are_not_there_are_named(pool: Pool, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_columns(pool, [name], {})


def test_an_unfinished_annotation_is_refused_with_the_command_that_finishes_it(pool: Pool) -> None:
    annotate_shard(pool, 0, "half", {"clip_score": [0.5] * 12}, SCORE)
    with pytest.raises(MissingColumnsError, match=r"2 of 3 shards lack, 00001 first; .*winnow annotate .*label=half"):
        find_columns(pool, ["half.clip_score"], {})


def test_labels_of_the_selection_go_before_the_pools(pool: Pool) -> None:
    other = pool.labels()["siglip"]
    assert find_columns(pool, ["b32.clip_score"], {"b32": other}) == {"b32.clip_score": other}


def test_columns_of_the_whole_pool_are_carried_until_it_grows(
    pool: Pool, ray_session: Executor, tmp_path: Path
) -> None:
    annotate(pool, [parse_operator("exact_dedup")], executor=ray_session)
    config = BuildConfig(columns=("exact_dedup.image_num_copies",))
    report = build(pool, "odd", str(tmp_path / "out"), config, executor=ray_session, progress=SilentProgress())
    assert {row["exact_dedup.image_num_copies"] for row in rows_of(report.folder)} >= {1}
    write_shard(pool, 2, make_rows(12, seed=9))
    with pytest.raises(MissingColumnsError, match=r"'exact_dedup\.image_num_copies', which 3 of 3 shards lack"):
        find_columns(pool, config.columns, pool.labels())
