"""A shard on disk, as img2dataset lays it out: tar, `_stats.json`, and last the Parquet with every row."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

import numpy as np
import pyarrow as pa

from curate.fetch.transform import Transformed
from curate.forgotten import bury
from curate.store import Pool
from curate.tar import TarWriter
from schemas.sample import (
    FETCH_COLUMNS,
    INGEST_COLUMNS,
    SHARD_DIGEST_KEY,
    STATUS_FAILED_DOWNLOAD,
    STATUS_FAILED_RESIZE,
    STATUS_FORGOTTEN,
    STATUS_SUCCESS,
    UID_DIGEST_KEY,
    sample_key,
    sample_schema,
    shard_digest,
    shard_name,
)
from schemas.uid import digest_uids

# What a fetch finds out about a row, in the Parquet's order: the fields of `Transformed`, less the image.
RESULT_COLUMNS = ("status", "error_message", "width", "height", "original_width", "original_height", "exif", "sha256")

# Encoded images wait here for their turn in the tar; past this size the waiting is done on disk.
_SPOOL_BYTES = 64 * 1024**2


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """What became of a shard's rows."""

    num_rows: int
    num_successes: int
    messages: dict[str, int]  # error_message -> rows, most frequent first; "success" for those that went well

    @classmethod
    def of(cls, results: Sequence[Transformed]) -> "ShardCounts":
        """Count results."""
        messages = Counter(result.error_message or STATUS_SUCCESS for result in results)
        num_successes = sum(result.status == STATUS_SUCCESS for result in results)
        return cls(num_rows=len(results), num_successes=num_successes, messages=dict(messages.most_common()))


def read_counts(pool: Pool, shard: int) -> ShardCounts:
    """Return the counts of a committed shard, from its `_stats.json`."""
    stats = json.loads(pool.read_bytes(f"shards/{shard_name(shard)}_stats.json"))
    return ShardCounts(num_rows=stats["count"], num_successes=stats["successes"], messages=stats["status_dict"])


class Spool:
    """Holds encoded images until the shard is written, in any order, in bounded memory."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - closed by `close`
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def put(self, row: int, image: bytes) -> None:
        """Keep the image of a row; a later one replaces it."""
        self._file.seek(self._end)
        self._file.write(image)
        self._places[row] = (self._end, len(image))
        self._end += len(image)

    def get(self, row: int) -> bytes:
        """Return the image of a row."""
        offset, size = self._places[row]
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        """Free the space."""
        self._file.close()


def write_shard(
    pool: Pool,
    shard: int,
    rows: pa.Table,
    results: Sequence[Transformed],
    image_of: Callable[[int], bytes],
    *,
    shard_size: int,
    suffix: str,
    has_captions: bool,
    start_time: float,
) -> ShardCounts:
    """Commit a shard: `rows` as ingested, `results` in their order, `image_of(row)` the stored bytes of a success."""
    table = build_table(shard, rows, results, shard_size)
    json_rows = table.to_pylist()
    with pool.commit(f"shards/{shard_name(shard)}.tar") as file:
        _write_tar(file, json_rows, image_of, suffix, has_captions)
    counts = ShardCounts.of(results)
    pool.commit_bytes(f"shards/{shard_name(shard)}_stats.json", _stats(results, counts, start_time))
    # The Parquet's existence says that the shard is done: it goes last.
    pool.commit_table(pool.shard_parquet(shard), table)
    return counts


def build_table(shard: int, rows: pa.Table, results: Sequence[Transformed], shard_size: int) -> pa.Table:
    """Return the shard's Parquet as a table: img2dataset's columns in its order, with the shard's digests as metadata."""
    own = {name for name, _ in (*INGEST_COLUMNS, *FETCH_COLUMNS)}
    extra = [field for field in rows.schema if field.name not in own]
    columns: dict[str, object] = {
        name: rows[name] for name in ("uid", "num_occurrences", *(f.name for f in extra), "caption", "url")
    }
    columns["key"] = [sample_key(shard, index, shard_size) for index in range(len(rows))]
    for name in RESULT_COLUMNS:
        columns[name] = [getattr(result, name) for result in results]
    table = pa.table(columns, schema=sample_schema(extra))
    table = bury(table, np.array([result.status == STATUS_FORGOTTEN for result in results], dtype=bool))
    digests = {
        SHARD_DIGEST_KEY: shard_digest(table).encode(),
        UID_DIGEST_KEY: digest_uids(rows["uid"].to_pylist()).encode(),
    }
    return table.replace_schema_metadata(digests)


def _write_tar(
    file: BinaryIO, rows: list[dict[str, object]], image_of: Callable[[int], bytes], suffix: str, has_captions: bool
) -> None:
    writer = TarWriter(file)
    for index, row in enumerate(rows):
        if row["status"] != STATUS_SUCCESS:
            continue
        writer.add(f"{row['key']}.{suffix}", image_of(index))
        writer.add(f"{row['key']}.json", _to_json(row).encode())
        if has_captions:
            caption = cast(str | None, row["caption"])
            writer.add(f"{row['key']}.txt", (caption or "").encode("utf-8", "surrogatepass"))
    writer.close()


def _to_json(row: dict[str, object]) -> str:
    """Return what `json.dumps(row, indent=4)` returns, which for an indented text runs in Python and takes three times as long."""
    if any(isinstance(value, dict | list | tuple) for value in row.values()):
        return json.dumps(row, indent=4, default=_to_text)
    flat = json.dumps(row, default=_to_text, separators=(",\n    ", ": "))
    return "{\n    " + flat[1:-1] + "\n}"


def _to_text(value: object) -> object:
    # Dates, decimals, bytes: whatever the list carried along, as text.
    return value.hex() if isinstance(value, bytes) else str(value)


def _stats(results: Sequence[Transformed], counts: ShardCounts, start_time: float) -> bytes:
    end_time = time.time()
    content = {
        "count": counts.num_rows,
        "successes": counts.num_successes,
        "failed_to_download": sum(result.status == STATUS_FAILED_DOWNLOAD for result in results),
        "failed_to_resize": sum(result.status == STATUS_FAILED_RESIZE for result in results),
        "duration": end_time - start_time,
        "start_time": start_time,
        "end_time": end_time,
        "status_dict": counts.messages,
    }
    return json.dumps(content, indent=4).encode()
