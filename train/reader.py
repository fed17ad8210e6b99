"""Reads images out of tars by byte offset: one positioned read per image, no scan, any order.

Each read takes the member's tar header along (512 bytes more): a tar that was rewritten since the index was made is found at once,
instead of training on the wrong picture.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import numpy.typing as npt

from schemas.errors import StaleDatasetError

_HEADER_BYTES = 512
_DEFAULT_OPEN_FILES = 128


@dataclass(frozen=True)
class TarFile:
    """Where a tar lies (local path or fsspec URL) and how many bytes it has; -1 where that is not known."""

    location: str
    num_bytes: int = -1


class ImageReader:
    """Reads byte ranges of tars; keeps up to `max_open_files` open. Not shared between processes: each makes its own."""

    def __init__(self, tars: Sequence[TarFile], max_open_files: int = _DEFAULT_OPEN_FILES) -> None:
        self._tars = tars
        self._max_open_files = max_open_files
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def read(
        self, shards: npt.NDArray[np.integer], offsets: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer]
    ) -> list[bytes]:
        """Return the images in the order asked for; they are read in the order in which they lie on the disk."""
        images = [b""] * len(shards)
        remote: list[int] = []
        for position in np.lexsort((offsets, shards)).tolist():
            if "://" in self._tars[int(shards[position])].location:
                remote.append(position)
            else:
                images[position] = self._read_local(int(shards[position]), int(offsets[position]), int(sizes[position]))
        if remote:
            blocks = self._read_remote([(int(shards[p]), int(offsets[p]), int(sizes[p])) for p in remote])
            for position, block in zip(remote, blocks, strict=True):
                images[position] = block
        return images

    def describe(self, shard: int, offset: int) -> str:
        """Name a member for an error message: its tar, its name in it and its offset."""
        tar = self._tars[shard].location
        with fsspec.open(tar, "rb") as file:
            file.seek(max(0, offset - _HEADER_BYTES))
            name = file.read(100).split(b"\0")[0].decode("utf-8", "replace")
        return f"{tar}, member {name!r} at byte {offset}"

    def close(self) -> None:
        """Close every open tar."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _read_local(self, shard: int, offset: int, size: int) -> bytes:
        start = max(0, offset - _HEADER_BYTES)
        length = offset + size - start
        block = os.pread(self._open(shard), length, start)
        while len(block) < length:  # a signal may cut a read short, the end of the file does for good
            more = os.pread(self._open(shard), length - len(block), start + len(block))
            if not more:
                break
            block += more
        return self._check(shard, offset, size, block)

    def _read_remote(self, ranges: Sequence[tuple[int, int, int]]) -> list[bytes]:
        filesystem, _ = fsspec.core.url_to_fs(self._tars[ranges[0][0]].location)
        paths = [fsspec.core.url_to_fs(self._tars[shard].location)[1] for shard, _, _ in ranges]
        starts = [max(0, offset - _HEADER_BYTES) for _, offset, _ in ranges]
        ends = [offset + size for _, offset, size in ranges]
        # One call for the batch: object stores answer the requests concurrently.
        blocks = filesystem.cat_ranges(paths, starts, ends, on_error="return")
        for (shard, _, _), block in zip(ranges, blocks, strict=True):
            if isinstance(block, FileNotFoundError):
                raise StaleDatasetError(f"{self._tars[shard].location} is missing; build the dataset again") from block
            if isinstance(block, BaseException):
                raise block
        return [self._check(*wanted, bytes(block)) for wanted, block in zip(ranges, blocks, strict=True)]

    def _open(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is not None:
            self._descriptors.move_to_end(shard)
            return descriptor
        tar = self._tars[shard]
        try:
            descriptor = os.open(tar.location, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise StaleDatasetError(f"{tar.location} is missing; build the dataset again") from error
        found = os.fstat(descriptor).st_size
        if tar.num_bytes not in (-1, found):
            os.close(descriptor)
            raise StaleDatasetError(
                f"{tar.location} has {found} bytes, the index says {tar.num_bytes}; build the dataset again"
            )
        self._descriptors[shard] = descriptor
        if len(self._descriptors) > self._max_open_files:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def _check(self, shard: int, offset: int, size: int, block: bytes) -> bytes:
        header, image = block[: -size or None][:_HEADER_BYTES], block[-size:] if size else b""
        complete = len(block) == min(offset, _HEADER_BYTES) + size
        if not complete or len(header) < _HEADER_BYTES or _member_bytes(header) != size:
            raise StaleDatasetError(
                f"{self._tars[shard].location} has no member of {size} bytes at byte {offset}, as the index says; build the dataset again"
            )
        return image


def _member_bytes(header: bytes) -> int:
    """Return the size a tar header states, or -1 where the bytes are no such header."""
    if header[257:262] not in (b"ustar", b"\0" * 5):
        return -1
    try:
        return int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return -1
