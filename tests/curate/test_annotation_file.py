"""Annotation files written and read in pieces."""

from pathlib import Path

import pyarrow as pa
import pytest

from curate import annotation_file
from curate.annotation_file import StoredColumns, write_annotations
from curate.columns import Output
from curate.operators.language import Language
from curate.plan import Origin, Planned, make_plan
from curate.store import Pool, ShardHeader
from schemas.errors import StaleDatasetError
from schemas.sample import sample_schema
from tests.pool import make_pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return make_pool(tmp_path / "pool", num_shards=1, shard_size=50)


def planned(pool: Pool) -> Planned:
    (found,) = make_plan(pool, [Language()], sample_schema().names)
    return found


def write(pool: Pool, header: ShardHeader, uids: pa.Array, sizes: list[int]) -> str:
    language = planned(pool)
    with write_annotations(pool, [language], header, "") as writers:
        start = 0
        for size in sizes:
            codes = pa.array([f"c{n}" if n % 7 else None for n in range(start, start + size)], pa.string())
            columns = {"language_code": codes, "language_probability": pa.array([0.5] * size, pa.float32())}
            errors = [None if n % 7 else "odd" for n in range(start, start + size)]
            writers[language.fingerprint].add(uids.slice(start, size), Output(columns=columns, errors=errors))
            start += size
    return pool.annotation_path("language", language.fingerprint, header.shard)


def uids_of(pool: Pool) -> pa.Array:
    return pool.read_table(pool.shard_parquet(0), columns=["uid"]).column("uid").combine_chunks()


def test_the_bytes_do_not_depend_on_the_pieces(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_file, "GROUP_ROWS", 8)
    header = pool.shard_header(0)
    contents = []
    for sizes in ([50], [1] * 50, [7, 0, 20, 23], [8] * 6 + [2]):
        path = write(pool, header, uids_of(pool), sizes)
        contents.append(pool.read_bytes(path))
    assert len(set(contents)) == 1
    assert pool.read_footer(path).num_row_groups == 7
    assert pool.read_table(path).column("language_code")[8].as_py() == "c8"


def test_other_rows_are_not_committed(pool: Pool) -> None:
    header = pool.shard_header(0)
    uids = uids_of(pool)
    swapped = pa.concat_arrays([uids.slice(1, 1), uids.slice(0, 1), uids.slice(2)])
    for wrong, sizes in ((uids, [49]), (swapped, [50])):
        with pytest.raises(StaleDatasetError, match="does not match its own header"):
            write(pool, header, wrong, sizes)
    assert list((Path(pool.root) / "annotations").rglob("*.parquet")) == []
    assert list((Path(pool.root) / "annotations").rglob("*.staging")) == []


def test_stored_columns_are_read_alongside(pool: Pool) -> None:
    header = pool.shard_header(0)
    write(pool, header, uids_of(pool), [50])
    language = planned(pool)
    origins = [
        Origin(kind="annotation", column=name, operator="language", fingerprint=language.fingerprint)
        for name in ("language_probability", "language_code")
    ]
    seen: list[str | None] = []
    with StoredColumns(pool, header, origins) as stored:
        for size in (3, 30, 17):
            found = stored.take(size)["annotation", language.fingerprint, "language_code"]
            values = iter(found.values.to_pylist())
            seen += [next(values) if valid else None for valid in found.valid]
            assert [found.reasons[row] for row in range(size) if not found.valid[row]] == ["odd"] * int(
                (~found.valid).sum()
            )
    assert seen == [f"c{n}" if n % 7 else None for n in range(50)]


def test_columns_of_other_rows_are_refused(pool: Pool, tmp_path: Path) -> None:
    header = pool.shard_header(0)
    path = write(pool, header, uids_of(pool), [50])
    other = make_pool(tmp_path / "other", num_shards=1, shard_size=50, seed=5)
    other.commit_bytes(path, pool.read_bytes(path))
    origin = Origin(
        kind="annotation", column="language_code", operator="language", fingerprint=planned(pool).fingerprint
    )
    with pytest.raises(StaleDatasetError, match="is not about shard 0 as it is now; annotate again"):
        StoredColumns(other, other.shard_header(0), [origin])
