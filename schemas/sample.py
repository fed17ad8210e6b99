"""A pool shard: img2dataset's column layout, and the few names Winnow adds to it.

On disk the web text is called `caption`, as img2dataset writes it; in SQL and for operators it is `alt_text`.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

STATUS_SUCCESS = "success"
STATUS_FAILED_DOWNLOAD = "failed_to_download"
STATUS_FAILED_RESIZE = "failed_to_resize"
# Taken down by `winnow forget`: the row has its uid and nothing else.
STATUS_FORGOTTEN = "forgotten"

# Names img2dataset keeps for itself; an extra column of the input may not use them.
RESERVED_COLUMNS = frozenset([
    "key",
    "caption",
    "url",
    "width",
    "height",
    "original_width",
    "original_height",
    "status",
    "error_message",
    "exif",
    "md5",
    "sha256",
    "sha512",
])

# What a fetch adds to every row, after the extra columns; `caption` and `url` come first, `sha256` covers the original bytes.
FETCH_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("caption", pa.string()),
    ("url", pa.string()),
    ("key", pa.string()),
    ("status", pa.string()),
    ("error_message", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("original_width", pa.int32()),
    ("original_height", pa.int32()),
    ("exif", pa.string()),
    ("sha256", pa.string()),
)
# What ingest adds before everything else; img2dataset sees them as additional columns.
INGEST_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (("uid", pa.string()), ("num_occurrences", pa.int32()))

# Column names that differ between the shard Parquet and SQL or operators.
SQL_NAMES = {"caption": "alt_text"}

# Schema metadata of a shard Parquet.
SHARD_DIGEST_KEY = b"winnow.shard_digest"
UID_DIGEST_KEY = b"winnow.uid_digest"
# Present where the shard's tar lies outside the pool (an import without a copy): its path or URL.
TAR_LOCATION_KEY = b"winnow.tar"

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff")


def shard_name(shard: int) -> str:
    """Return the file stem of a shard: at least five digits, as img2dataset's default."""
    return f"{shard:05d}"


def sample_key(shard: int, index: int, shard_size: int) -> str:
    """Return the tar key of row `index`: `shard * 10^k + index`, zero-padded to `5 + k` digits, where k = ceil(log10(shard_size))."""
    digits = len(str(shard_size - 1)) if shard_size > 1 else 0
    return f"{shard * 10**digits + index:0{5 + digits}d}"


def sample_schema(extra: Sequence[pa.Field] = ()) -> pa.Schema:
    """Return the schema of a shard Parquet: uid, num_occurrences, the carried `extra` columns, then img2dataset's own."""
    return pa.schema([
        *(pa.field(n, t) for n, t in INGEST_COLUMNS),
        *extra,
        *(pa.field(n, t) for n, t in FETCH_COLUMNS),
    ])


def shard_digest(table: pa.Table) -> str:
    """Return the content identity of a shard: sha256 over every row's uid, url, caption, status and image digest, in order.

    It changes when `winnow retry` turns a failure into a success, which makes that shard's annotations stale, and with nothing else:
    `winnow forget` empties rows, of the shard and of what was computed from it alike, and leaves the identity as it is.
    """
    digest = hashlib.sha256()
    for name in ("uid", "url", "caption", "status", "sha256"):
        values = table.column(name).to_pylist()
        for value in values:
            encoded = b"" if value is None else value.encode("utf-8", "surrogatepass")
            digest.update(b"-" if value is None else str(len(encoded)).encode() + b":")
            digest.update(encoded)
    return digest.hexdigest()
