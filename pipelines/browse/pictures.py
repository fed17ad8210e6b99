"""A sample's picture straight from its tar: one positioned read, once the tar's headers were walked.

The walk reads 512 bytes per member, never the pictures; what it finds is kept for as long as the server runs. What a browser is sent is what
the bytes say they are, and only where that is a raster format: a file called .jpg that holds HTML or SVG is sent to nobody.
"""

import os
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.images import ImageError, decode, encode
from curate.store import Pool, ShardHeader
from curate.tar import BLOCK, index_tar
from schemas.errors import StaleDatasetError
from schemas.sample import IMAGE_SUFFIXES
from train.reader import ImageReader, TarFile

# A picture of many megapixels that browsers cannot show is not worth a minute of decoding.
_MAX_PIXELS = 50_000_000
_MAX_BYTES = 64 << 20
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_SUFFIXES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)

Members = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A file and what it is."""

    data: bytes
    media_type: str


class Pictures:
    """The pictures of a pool by shard and key; safe to use from several threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._members: dict[int, Members] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, header: ShardHeader, key: str) -> Picture:
        """Return a picture; raises ImageError where there is none, or none that a browser may be sent."""
        place = self.index(header).get(key)
        if place is None:
            raise ImageError("the tar has no picture of this sample")
        offset, size = place
        if size > _MAX_BYTES:
            raise ImageError(f"the file has {size >> 20} MiB; at most {_MAX_BYTES >> 20} are shown")
        reader = ImageReader([TarFile(self._location(header))])
        try:
            (data,) = reader.read(np.array([0]), np.array([offset]), np.array([size]))
        except (StaleDatasetError, OSError) as error:
            raise ImageError(
                f"the tar has changed since it was opened, or cannot be read ({type(error).__name__})"
            ) from error
        finally:
            reader.close()
        return as_raster(data)

    def index(self, header: ShardHeader) -> Members:
        """Return where the pictures of a shard lie in its tar, by key; 70 ms per ten thousand samples the first time."""
        with self._lock:
            lock = self._locks.setdefault(header.shard, threading.Lock())
        with lock:
            if header.shard not in self._members:
                try:
                    self._members[header.shard] = self._walk(header)
                except (tarfile.ReadError, OSError) as error:
                    raise ImageError(f"the tar cannot be read: {error}") from error
            return self._members[header.shard]

    def _walk(self, header: ShardHeader) -> Members:
        path = self._location(header)
        if "://" not in path:
            found = walk_headers(Path(path))
            if found is not None:
                return found
        with self._pool.open(self._pool.shard_tar(header)) as file:
            members: dict[str, tuple[int, int]] = {}
            for member in index_tar(file):
                _add(members, member.name, member.offset, member.size)
            return members

    def _location(self, header: ShardHeader) -> str:
        return self._pool.locate(self._pool.shard_tar(header))


def walk_headers(path: Path) -> Members | None:
    """Return where the pictures of a local tar lie, by key; None where it is not the plain kind, whose names need more than a header."""
    members: dict[str, tuple[int, int]] = {}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        position = 0
        while position + BLOCK <= end:
            header = os.pread(descriptor, BLOCK, position)
            if header[257:262] != b"ustar":
                return members if header == bytes(BLOCK) else None
            if header[156:157] not in b"07\0" or header[345:346] != b"\0" or header[124] & 0x80:
                return None
            try:
                size = int(header[124:135], 8)
            except ValueError:
                return None
            name = header[: header.find(b"\0", 0, 100)] if b"\0" in header[:100] else header[:100]
            offset = position + BLOCK
            if offset + size > end:
                return None
            if name.lower().endswith(_SUFFIXES):
                _add(members, name.decode("utf-8", "surrogateescape"), offset, size)
            position = offset + size + -size % BLOCK
    finally:
        os.close(descriptor)
    return members


def as_raster(data: bytes) -> Picture:
    """Return a file as what a browser may be sent: as it is in the common formats, as a JPEG in others that Winnow decodes.

    Raises ImageError for everything else, among it SVG, HTML and whatever pretends to be a picture.
    """
    media_type = sniff(data)
    if media_type:
        return Picture(data=data, media_type=media_type)
    return Picture(data=encode(decode(data, max_pixels=_MAX_PIXELS), "jpg", 90), media_type="image/jpeg")


def sniff(data: bytes) -> str:
    """Return the media type that the first bytes tell, or "" where they tell none that every browser shows."""
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS else ""


def _add(members: dict[str, tuple[int, int]], name: str, offset: int, size: int) -> None:
    """Note a member by its key as the shard reader does: the name up to its first dot, with its folder and without; the first counts."""
    folder, slash, file = name.rpartition("/")
    base, _, suffix = file.partition(".")
    if suffix.lower() in IMAGE_SUFFIXES:
        members.setdefault(base, (offset, size))
        if slash:
            members.setdefault(f"{folder}/{base}", (offset, size))
