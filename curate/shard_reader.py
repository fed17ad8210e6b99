"""Reads a shard once, from its first row to its last, in chunks that fit in memory whatever the shard's size.

Where one chunk ends and the next begins follows from the shard alone, never from who asks or for what: models run on the same batches
every time, so that a run that was interrupted ends with the same bytes as one that was not.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import images
from curate.operator import IMAGE_TYPE
from curate.store import Pool, ShardHeader
from curate.tar import Member, index_tar
from schemas.sample import IMAGE_SUFFIXES, STATUS_SUCCESS

CHUNK_ROWS = 256
# Decoded pictures of a chunk; one more picture may pass it. Two such buffers live at a time.
CHUNK_BYTES = 128 << 20
# Rows read from the Parquet at once: a multiple of CHUNK_ROWS, so that blocks do not cut chunks short.
_BLOCK_ROWS = 16 * CHUNK_ROWS
# What a picture is taken to need where the shard does not say (an import that did not look): 4 megapixels.
_UNKNOWN_BYTES = 12 << 20
_OWN_COLUMNS = ("uid", "key", "status", "error_message", "width", "height")
_REMOTE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What became of a chunk's pictures: `values` holds only those that are there, `errors` says for every row why its one is not."""

    values: pa.Array
    errors: list[str | None]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a shard: sample columns by their name on disk, and the pictures or their files where asked for."""

    first_row: int
    samples: pa.Table
    pictures: Pictures | None
    files: Pictures | None

    @property
    def num_rows(self) -> int:
        """The number of rows, failed downloads included."""
        return int(self.samples.num_rows)


def read_chunks(
    pool: Pool, header: ShardHeader, columns: Sequence[str], *, needs_pictures: bool, needs_files: bool
) -> Iterator[Chunk]:
    """Yield the shard's rows in order; the tar is opened only where pictures or files are needed, and read once."""
    wanted = list(dict.fromkeys([*_OWN_COLUMNS, *columns]))
    first_row = 0
    with (
        _open_tar(pool, header, needs_pictures or needs_files) as tar,
        pool.open(pool.shard_parquet(header.shard)) as file,
    ):
        for block in pq.ParquetFile(file).iter_batches(batch_size=_BLOCK_ROWS, columns=wanted):
            table = pa.table(block).select(wanted)
            for start, stop in plan_chunks(table):
                rows = table.slice(start, stop - start)
                encoded = tar.read(rows) if tar else None
                yield Chunk(
                    first_row=first_row + start,
                    samples=rows,
                    pictures=_decode(encoded) if encoded and needs_pictures else None,
                    files=_keep(encoded) if encoded and needs_files else None,
                )
            first_row += table.num_rows


def plan_chunks(table: pa.Table) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of chunks: at most CHUNK_ROWS rows, and about CHUNK_BYTES of pixels by the sizes that the shard states."""
    widths = table.column("width").fill_null(0).to_numpy().astype(np.int64)
    heights = table.column("height").fill_null(0).to_numpy().astype(np.int64)
    success = np.array([status == STATUS_SUCCESS for status in table.column("status").to_pylist()], dtype=bool)
    sizes = np.where(success, np.where(widths * heights > 0, 3 * widths * heights, _UNKNOWN_BYTES), 0)
    start, total = 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and (row - start == CHUNK_ROWS or total + size > CHUNK_BYTES):
            yield start, row
            start, total = row, 0
        total += size
    if table.num_rows > start:
        yield start, table.num_rows


class _Tar:
    """The image members of an open tar by key."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members = _index_images(file)

    def read(self, rows: pa.Table) -> list[bytes | str]:
        """Return every row's file, or the message that says why there is none."""
        keys = rows.column("key").to_pylist()
        statuses = rows.column("status").to_pylist()
        messages = rows.column("error_message").to_pylist()
        found: list[bytes | str] = []
        for key, status, message in zip(keys, statuses, messages, strict=True):
            member = self._members.get(key)
            if status != STATUS_SUCCESS:
                found.append(f"no image: {message or status}")
            elif member is None:
                found.append(f"no image: the tar has no picture {key!r}")
            else:
                self._file.seek(member.offset)
                found.append(self._file.read(member.size))
        return found


@contextmanager
def _open_tar(pool: Pool, header: ShardHeader, is_needed: bool) -> Iterator[_Tar | None]:
    if not is_needed:
        yield None
        return
    path = pool.shard_tar(header)
    with pool.open(path) as file:
        if pool.is_local and "://" not in path:
            yield _Tar(file)
            return
        # An index jumps from header to header, which over a network costs a request each: fetch the whole once, in large pieces.
        with tempfile.TemporaryFile() as local:
            shutil.copyfileobj(file, local, _REMOTE_BYTES)
            yield _Tar(local)


def _index_images(file: BinaryIO) -> dict[str, Member]:
    """Return image members by key: the name up to its first dot, with its folder and without; the first of a key counts."""
    members: dict[str, Member] = {}
    for member in index_tar(file):
        folder, slash, name = member.name.rpartition("/")
        base, _, suffix = name.partition(".")
        if suffix.lower() in IMAGE_SUFFIXES:
            members.setdefault(base, member)
            if slash:
                members.setdefault(f"{folder}/{base}", member)
    return members


def _decode(encoded: Sequence[bytes | str]) -> Pictures:
    errors: list[str | None] = []
    decoded = []
    for data in encoded:
        if isinstance(data, str):
            errors.append(data)
            continue
        try:
            decoded.append(images.decode(data))
        except images.ImageError as error:
            errors.append(str(error))
        else:
            errors.append(None)
    return Pictures(values=to_column(decoded), errors=errors)


def _keep(encoded: Sequence[bytes | str]) -> Pictures:
    values = pa.array([data for data in encoded if isinstance(data, bytes)], pa.large_binary())
    return Pictures(values=values, errors=[data if isinstance(data, str) else None for data in encoded])


def to_column(decoded: list[Any]) -> pa.Array:
    """Return pictures as a column of IMAGE_TYPE without nulls, emptying the list on the way: each picture is copied once and freed."""
    heights = np.array([picture.shape[0] for picture in decoded], dtype=np.int32)
    widths = np.array([picture.shape[1] for picture in decoded], dtype=np.int32)
    offsets = np.zeros(len(decoded) + 1, dtype=np.int64)
    np.cumsum(3 * heights.astype(np.int64) * widths, out=offsets[1:])
    pixels = np.empty(int(offsets[-1]), dtype=np.uint8)
    for row in range(len(decoded)):
        pixels[offsets[row] : offsets[row + 1]] = decoded[row].reshape(-1)
        decoded[row] = None
    rgb = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(heights), [None, pa.py_buffer(offsets), pa.py_buffer(pixels)]
    )
    return pa.StructArray.from_arrays([rgb, pa.array(heights), pa.array(widths)], fields=list(IMAGE_TYPE))


