"""What S3 keeps of files without listing them: uploads that nobody finished, and versions from before a takedown.

An upload that was killed is to object storage what a staging file is to a disk: half a tar, perhaps with the picture, under no name. Of
other stores nothing is known here.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from curate.forget_files import Eraser
from curate.store import Store

logger = logging.getLogger(__name__)

# As long as a staging file of another machine is left alone: whoever writes it may be alive.
_ABANDONED = timedelta(days=1)


def forget_hidden(eraser: Eraser, locations: Sequence[str], now: datetime | None = None) -> None:
    """Abort uploads below some folders or files of S3 that were begun over a day ago, and name what is hidden and stays.

    That is uploads which are younger, and earlier versions, where a bucket keeps them and this takedown has changed something.
    """
    buckets = dict[str, Any]()
    for location in dict.fromkeys(locations):
        store = Store(location)
        filesystem = store.filesystem
        if "s3" not in filesystem.protocol:
            continue
        bucket, _, path = store.root.partition("://")[2].partition("/")
        buckets[bucket] = filesystem
        try:
            _abort_uploads(eraser, filesystem, bucket, path, now or datetime.now(UTC))
        except OSError as error:
            _leave_unknown(eraser, store.root, "uploads that were never finished", error)
    for bucket, filesystem in buckets.items() if eraser.journal.changes else ():
        try:
            _name_versions(eraser, filesystem, bucket)
        except OSError as error:
            _leave_unknown(eraser, f"s3://{bucket}", "earlier versions of its objects", error)


def _abort_uploads(eraser: Eraser, filesystem: Any, bucket: str, path: str, now: datetime) -> None:
    for upload in _list_uploads(filesystem, bucket, path):
        key, begun = str(upload["Key"]), upload["Initiated"]
        if path and key != path and not key.startswith(f"{path}/"):
            continue
        if now - begun < _ABANDONED:
            eraser.journal.leave(
                f"s3://{bucket}/{key}",
                f"an upload to it, begun {begun:%Y-%m-%d %H:%M} UTC, is not finished, and may hold what was taken down",
                "make the same request again a day later, unless the upload has come to its end by then",
            )
        elif not eraser.is_dry:
            logger.info("aborting abandoned upload bucket=%s key=%s", bucket, key)
            filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload["UploadId"])


def _list_uploads(filesystem: Any, bucket: str, path: str) -> Iterator[dict[str, Any]]:
    marker: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=path, **marker)
        yield from page.get("Uploads") or ()
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _name_versions(eraser: Eraser, filesystem: Any, bucket: str) -> None:
    # A bucket whose versioning was suspended keeps the versions that it has.
    if filesystem.call_s3("get_bucket_versioning", Bucket=bucket).get("Status") in ("Enabled", "Suspended"):
        eraser.journal.leave(
            f"s3://{bucket}",
            "it keeps earlier versions of its objects, so those of the files named here hold what was taken down still",
            "delete the versions of these files that are not current (`aws s3api list-object-versions` names them), or let a lifecycle "
            "rule of the bucket expire them",
        )


def _leave_unknown(eraser: Eraser, location: str, what: str, error: OSError) -> None:
    eraser.journal.leave(
        location,
        f"it could not be asked for {what}: {error}",
        "let an owner of the bucket look, and remove what is there",
    )
