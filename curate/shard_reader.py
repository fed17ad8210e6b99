"""Reads a shard once, from its first row to its last, in chunks that fit in memory whatever the shard's size.

Where one chunk ends and the next begins follows from the shard alone, never from who asks or for what: models run on the same batches
every time, so that a run that was interrupted ends with the same bytes as one that was not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import images
from curate.columns import Input
from curate.luma import make_column, to_luma
from curate.operator import IMAGE_LUMA_TYPE, IMAGE_TYPE
from curate.store import Pool, ShardHeader
from curate.tar import Member, index_tar, split_name
from schemas.sample import IMAGE_SUFFIXES, STATUS_SUCCESS

CHUNK_ROWS = 256
# The pictures of a chunk, were they all decoded at once: what an operator with a model and no `prepare` may be sent.
CHUNK_BYTES = 128 << 20
# Pictures decoded at once, one more may pass it. Few enough that they are still in the processor's cache when operators look at them,
# and that their memory is used again instead of being asked of the system: a quarter faster than decoding whole chunks.
BLOCK_BYTES = 16 << 20
# What the last picture of a block may need beyond that without being copied.
_BUFFER_BYTES = BLOCK_BYTES + (2 << 20)
# Rows read from the Parquet at once: a multiple of CHUNK_ROWS, so that blocks do not cut chunks short.
_BLOCK_ROWS = 16 * CHUNK_ROWS
# What a picture is taken to need where the shard does not say (an import that did not look): 4 megapixels.
_UNKNOWN_BYTES = 12 << 20
_OWN_COLUMNS = ("uid", "key", "status", "error_message", "width", "height")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a shard: sample columns by their name on disk, and, where asked for, each row's file or why it has none."""

    first_row: int
    samples: pa.Table
    tar: "_Tar | None"
    members: Sequence[Member | str]  # empty without a tar
    files: Sequence[bytes | str]  # empty where only pictures were asked for: those are decoded as they are read

    @property
    def num_rows(self) -> int:
        """The number of rows, failed downloads included."""
        return int(self.samples.num_rows)

    def read_files(self) -> Input:
        """Return the stored files."""
        values = pa.array([data for data in self.files if isinstance(data, bytes)], pa.large_binary())
        return Input.from_errors(values, [data if isinstance(data, str) else None for data in self.files])

    def read_file_sizes(self) -> Input:
        """Return the lengths of the stored files in bytes."""
        values = pa.array([member.size for member in self.members if isinstance(member, Member)], pa.int64())
        return Input.from_errors(values, [member if isinstance(member, str) else None for member in self.members])

    def decode(self, *, needs_colour: bool, needs_luma: bool) -> Iterator[tuple[int, int, dict[str, Input]]]:
        """Yield (start, stop, pictures) of consecutive rows, as many at a time as fit in BLOCK_BYTES; pictures by "image", "image_luma"."""
        assert self.tar is not None, "the tar was not asked for"
        start, block = 0, _Block(needs_colour, needs_luma)
        for row, source in enumerate(self.files or self.members):
            block.add(self.tar.read(source) if isinstance(source, Member) else source)
            if block.num_bytes >= BLOCK_BYTES or row + 1 == self.num_rows:
                yield start, row + 1, block.finish()
                start, block = row + 1, _Block(needs_colour, needs_luma)


class _Block:
    """Pictures decoded one behind the other into one buffer, which becomes an Arrow column without being copied."""

    def __init__(self, needs_colour: bool, needs_luma: bool) -> None:
        self.num_bytes = 0
        self._colours = _Column(_BUFFER_BYTES, IMAGE_TYPE) if needs_colour else None
        self._luma = _Column(_BUFFER_BYTES // 3, IMAGE_LUMA_TYPE) if needs_luma else None
        self._errors: list[str | None] = []

    def add(self, data: bytes | str) -> None:
        """Decode a file, or note why there is none."""
        if isinstance(data, str):
            self._errors.append(data)
            return
        try:
            picture = images.decode(data, out=self._colours.rest() if self._colours else None)
        except images.ImageError as error:
            self._errors.append(str(error))
            return
        self._errors.append(None)
        self.num_bytes += picture.nbytes
        if self._luma is not None:
            height, width = picture.shape[:2]
            room = self._luma.rest()[: height * width]
            out = room.reshape(height, width) if len(room) == height * width else None
            plane = to_luma(picture, out)
            self._luma.add(plane, is_placed=plane is out)
        if self._colours is not None:
            self._colours.add(picture, is_placed=picture.ctypes.data == self._colours.rest().ctypes.data)

    def finish(self) -> dict[str, Input]:
        """Return the pictures."""
        columns = {"image": self._colours, "image_luma": self._luma}
        return {kind: Input.from_errors(c.finish(), self._errors) for kind, c in columns.items() if c is not None}


class _Column:
    """Pictures that mostly lie in one buffer already, in order."""

    def __init__(self, num_bytes: int, kind: pa.StructType) -> None:
        self._buffer = np.empty(num_bytes, dtype=np.uint8)
        self._used = 0
        self._kind = kind
        self._pictures: list[np.ndarray] = []
        self._is_whole = True

    def rest(self) -> np.ndarray:
        return self._buffer[self._used :]

    def add(self, picture: np.ndarray, *, is_placed: bool) -> None:
        if not is_placed:
            rest = self.rest()
            if picture.nbytes <= rest.nbytes:
                rest[: picture.nbytes] = picture.reshape(-1)
            else:
                self._is_whole = False
        self._used += picture.nbytes
        self._pictures.append(picture)

    def finish(self) -> pa.Array:
        shapes = [picture.shape for picture in self._pictures]
        if self._is_whole:
            return make_column(shapes, self._buffer, self._kind)
        pixels = np.empty(sum(picture.nbytes for picture in self._pictures), dtype=np.uint8)
        position = 0
        for picture in self._pictures:
            pixels[position : position + picture.nbytes] = picture.reshape(-1)
            position += picture.nbytes
        return make_column(shapes, pixels, self._kind)


def read_chunks(
    pool: Pool, header: ShardHeader, columns: Sequence[str], *, needs_tar: bool, needs_files: bool = False
) -> Iterator[Chunk]:
    """Yield the shard's rows in order; the tar is opened only where `needs_tar`, and read once; `needs_files` keeps files whole."""
    wanted = list(dict.fromkeys([*_OWN_COLUMNS, *columns]))
    first_row = 0
    with (
        _open_tar(pool, header, needs_tar) as tar,
        pool.open(pool.shard_parquet(header.shard)) as file,
    ):
        for block in pq.ParquetFile(file).iter_batches(batch_size=_BLOCK_ROWS, columns=wanted):
            table = pa.table(block).select(wanted)
            for start, stop in plan_chunks(table):
                rows = table.slice(start, stop - start)
                members = tar.locate(rows) if tar else ()
                files = [tar.read(m) if isinstance(m, Member) else m for m in members] if tar and needs_files else ()
                yield Chunk(first_row=first_row + start, samples=rows, tar=tar, members=members, files=files)
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


def index_images(file: BinaryIO) -> dict[str, Member]:
    """Return the image members of an open tar by key, with their folder and without; the first of a key counts."""
    members: dict[str, Member] = {}
    for member in index_tar(file):
        if not member.name.lower().endswith(IMAGE_SUFFIXES):  # most members are texts
            continue
        keys, suffix = split_name(member.name)
        if suffix in IMAGE_SUFFIXES:
            for key in keys:
                members.setdefault(key, member)
    return members


class _Tar:
    """The image members of an open tar by key."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members = index_images(file)

    def read(self, member: Member) -> bytes:
        """Return a file."""
        self._file.seek(member.offset)
        return self._file.read(member.size)

    def locate(self, rows: pa.Table) -> list[Member | str]:
        """Return where every row's file lies, or the message that says why there is none."""
        keys = rows.column("key").to_pylist()
        statuses = rows.column("status").to_pylist()
        messages = rows.column("error_message").to_pylist()
        found: list[Member | str] = []
        for key, status, message in zip(keys, statuses, messages, strict=True):
            member = self._members.get(key)
            if status != STATUS_SUCCESS:
                found.append(f"no image: {message or status}")
            elif member is None:
                found.append(f"no image: the tar has no picture {key!r}")
            else:
                found.append(member)
        return found


@contextmanager
def _open_tar(pool: Pool, header: ShardHeader, is_needed: bool) -> Iterator[_Tar | None]:
    if not is_needed:
        yield None
        return
    with pool.open_seekable(pool.shard_tar(header)) as file:
        yield _Tar(file)
