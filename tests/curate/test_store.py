"""Committing, resuming, labels, on a local disk and in an object store."""

import hashlib
import os
import pickle
import time
from pathlib import Path

import pyarrow as pa
import pytest

from curate.store import LabelTarget, Pool, Store
from schemas.annotation import AnnotationHeader, annotation_schema
from schemas.errors import InputError, StaleDatasetError
from tests.pool import make_pool


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return (
        Store(tmp_path / "store") if request.param == "local" else Store(f"memory://{tmp_path.name}-{time.time_ns()}")
    )


def test_files_come_back(store: Store) -> None:
    store.commit_bytes("a/b.bin", b"data")
    store.commit_json("a/c.json", {"z": 1, "é": [2]})
    assert store.read_bytes("a/b.bin") == b"data"
    assert store.read_bytes("a/c.json") == b'{\n  "z": 1,\n  "\\u00e9": [\n    2\n  ]\n}\n'
    assert store.list_names("a") == ["b.bin", "c.json"]
    assert store.list_names("a", ".json") == ["c.json"]
    assert store.list_names("nothing") == []
    assert store.num_bytes("a/b.bin") == 4
    assert store.sha256("a/b.bin") == hashlib.sha256(b"data").hexdigest()
    assert store.exists("a/b.bin")
    store.remove("a/b.bin")
    store.remove("a/b.bin")
    assert not store.exists("a/b.bin")


def test_a_file_can_be_jumped_about_in(store: Store) -> None:
    store.commit_bytes("a.bin", b"0123456789")
    with store.open_seekable("a.bin") as file:
        assert file.read(1) == b"0"
        assert file.seek(0, 2) == 10
        file.seek(4)
        assert file.read(2) == b"45"


def test_a_selection_is_there_once_its_last_file_is(store: Store) -> None:
    pool = Pool(store.root)
    assert pool.selections() == []
    for path in ("b/selection.json", "a/selection.json", "c/ledger.parquet"):
        pool.commit_bytes(f"selections/{path}", b"{}")
    assert pool.selections() == ["selections/a", "selections/b"]


def test_tables_keep_their_metadata_and_their_bytes(store: Store) -> None:
    table = pa.table({"x": [1, None, 3], "s": ["a", "b", None]}).replace_schema_metadata({"winnow.k": "v"})
    store.commit_table("t.parquet", table)
    assert store.read_table("t.parquet").equals(table)
    assert store.read_table("t.parquet", columns=["s"]).column_names == ["s"]
    footer = store.read_footer("t.parquet")
    assert (footer.num_rows, footer.metadata[b"winnow.k"]) == (3, b"v")
    before = store.read_bytes("t.parquet")
    store.commit_table("t.parquet", table)
    assert store.read_bytes("t.parquet") == before


def test_nothing_appears_before_it_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit_bytes("f", b"old")
    with pytest.raises(KeyError), store.commit("f") as file:
        file.write(b"half")
        raise KeyError
    assert store.read_bytes("f") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_is_no_parquet_is_named(store: Store) -> None:
    store.commit_bytes("t.parquet", b"not parquet at all")
    with pytest.raises(StaleDatasetError, match=r"t.parquet is not a Parquet file .*remove it and run the stage again"):
        store.read_footer("t.parquet")


def test_a_store_travels_to_workers(store: Store) -> None:
    store.commit_bytes("f", b"x")
    assert pickle.loads(pickle.dumps(store)).read_bytes("f") == b"x"
    assert pickle.loads(pickle.dumps(Pool(store.root))).root == store.root


def test_staging_files_of_the_dead_are_removed_and_of_the_living_are_not(tmp_path: Path) -> None:
    import socket

    store = Store(tmp_path)
    dead = tmp_path / f".f.{socket.gethostname()}.999999999.abcd.staging"
    living = tmp_path / f".f.{socket.gethostname()}.{os.getpid()}.abcd.staging"
    elsewhere = tmp_path / ".f.otherhost.1.abcd.staging"
    old = tmp_path / ".f.otherhost.2.abcd.staging"
    for path in (dead, living, elsewhere, old):
        path.touch()
    os.utime(old, (0, 0))
    store.remove_abandoned("")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, elsewhere.name])
    store.remove_abandoned("no/such/folder")


def test_shards_are_the_parquet_files(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=3)
    assert pool.shards() == [0, 1, 2]
    header = pool.shard_header(1)
    assert (header.shard, header.num_rows, header.tar) == (1, 12, "")
    assert pool.shard_tar(header) == "shards/00001.tar"
    pool.commit_bytes("shards/summary.parquet", b"")
    with pytest.raises(InputError, match="holds a Parquet file that is not a shard"):
        pool.shards()


def test_foreign_shards_are_refused_with_the_remedy(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    with pytest.raises(InputError, match=r"no shards in .*make some with `winnow download"):
        pool.require_shards()
    pool.commit_table("shards/00000.parquet", pa.table({"url": ["a"]}))
    with pytest.raises(InputError, match="was not written by Winnow; bring the folder in with `winnow import`"):
        pool.shard_header(0)


def commit_annotation(pool: Pool, shard: int, **changes: str) -> None:
    header = pool.shard_header(shard)
    values = {
        "operator": "op",
        "version": "1",
        "fingerprint": "f" * 64,
        "parameters": "{}",
        "shard_digest": header.shard_digest,
        "uid_digest": header.uid_digest,
        **changes,
    }
    metadata = AnnotationHeader(**values).to_metadata()  # type: ignore[arg-type]
    schema = annotation_schema(pa.schema([("x", pa.int32())])).with_metadata(metadata)
    pool.commit_table(pool.annotation_path("op", "f" * 64, shard), schema.empty_table())


def test_missing_is_what_is_absent_or_about_other_rows(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=5)
    headers = {shard: pool.shard_header(shard) for shard in pool.shards()}
    assert pool.missing("op", "f" * 64, headers) == [0, 1, 2, 3, 4]
    commit_annotation(pool, 0)
    commit_annotation(pool, 1, shard_digest="of other rows")
    commit_annotation(pool, 2, fingerprint="f" * 12 + "0" * 52)  # the same folder, another identity
    commit_annotation(pool, 3, pool_digest="of another pool")
    assert pool.missing("op", "f" * 64, headers) == [1, 2, 3, 4]
    assert pool.missing("op", "f" * 64, headers, pool_digest="of another pool") == [0, 1, 2, 4]


def test_labels_are_kept_when_others_are_set(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    assert pool.labels() == {}
    first, second = LabelTarget(operator="a", fingerprint="1"), LabelTarget(operator="b", fingerprint="2")
    pool.set_labels({"x": first})
    pool.set_labels({"y": second})
    assert pool.labels() == {"x": first, "y": second}
    pool.set_labels({"x": second})
    assert pool.labels()["x"] == second
