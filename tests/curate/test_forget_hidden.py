"""What S3 hides: unfinished uploads are aborted or named, versions are named; asked of a real S3-compatible server."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="part of the extra dev")
pytest.importorskip("moto", reason="part of the extra dev")

from curate.forget_files import Eraser, Journal
from curate.forget_hidden import forget_hidden
from curate.store import Pool, Store
from tests.object_store import BUCKET, ObjectStore, serve_bucket

# The server says of every upload that it was begun then.
BEGUN = datetime(2010, 11, 10, 20, 48, 33, tzinfo=UTC)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with serve_bucket() as store:
        yield store


@pytest.fixture
def bucket(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.url


def begin(key: str) -> None:
    """Upload a part of an object, and go no further, as a process that is killed."""
    filesystem = Store(f"s3://{BUCKET}").filesystem
    upload = filesystem.call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    part = {"Bucket": BUCKET, "Key": key, "UploadId": upload["UploadId"], "PartNumber": 1}
    filesystem.call_s3("upload_part", **part, Body=b"half a picture")


def keys() -> list[str]:
    found: list[dict[str, Any]] = Store(f"s3://{BUCKET}").filesystem.list_multipart_uploads(BUCKET)
    return sorted(upload["Key"] for upload in found)


def eraser(pool: Pool, *, is_dry: bool = False) -> Eraser:
    return Eraser(Journal(pool, "forgotten/pending/test/changes", is_dry=is_dry))


def test_old_uploads_are_aborted_and_young_ones_named(bucket: str) -> None:
    pool = Pool(f"{bucket}/pool")
    ours = ["data/a/00000.tar", "lists/subset.npy", "pool/shards/00001.tar"]
    others = ["lists/subset.npy.old", "pool2/shards/00001.tar"]
    for key in [*ours, *others]:
        begin(key)
    locations = [pool.root, f"{bucket}/data", f"{bucket}/lists/subset.npy", pool.root]
    for is_dry, now in ((True, datetime.now(UTC)), (False, BEGUN + timedelta(hours=23))):
        work = eraser(pool, is_dry=is_dry)
        forget_hidden(work, locations, now)
        assert keys() == sorted([*ours, *others])
    assert sorted(left.path for left in work.journal.left) == [f"{bucket}/{key}" for key in ours]
    assert "begun 2010-11-10 20:48 UTC, is not finished" in work.journal.left[0].reason
    last = eraser(pool)
    forget_hidden(last, locations)
    assert keys() == others
    assert last.journal.left == []


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_bucket_that_keeps_versions_is_named_where_something_changed(bucket: str, is_changed: bool) -> None:
    name = f"versions-{is_changed}".lower()
    filesystem = Store(bucket).filesystem
    filesystem.mkdir(name)
    filesystem.make_bucket_versioned(name)
    store = Store(f"s3://{name}/data")
    store.commit_bytes("a.txt", b"alice")
    work = eraser(Pool(f"{bucket}/pool"))
    if is_changed:
        work.replace(store, "a.txt", ["0" * 32], b"nobody")
    forget_hidden(work, [f"{bucket}/pool", store.root])
    left = [(entry.path, "that are not current" in entry.remedy) for entry in work.journal.left]
    assert left == ([(f"s3://{name}", True)] if is_changed else [])
    work.journal.close()


def test_a_bucket_that_does_not_answer_is_named(bucket: str) -> None:
    work = eraser(Pool(f"{bucket}/pool"))
    forget_hidden(work, ["s3://no-such-bucket/pool"])
    (left,) = work.journal.left
    assert left.path == "s3://no-such-bucket/pool"
    assert left.reason.startswith("it could not be asked for uploads that were never finished: ")


def test_other_stores_are_not_asked(tmp_path: Any) -> None:
    work = eraser(Pool(tmp_path))
    work.replace(Store(tmp_path), "a.txt", [], b"nobody")
    forget_hidden(work, [str(tmp_path), "memory://data"])
    assert work.journal.left == []
