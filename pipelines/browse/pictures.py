"""A sample's picture straight from its tar: one positioned read, once the tar's headers were walked.

The walk reads headers and what little lies between them, never the pictures; what it finds is kept for as long as the server runs. What a browser is sent is what
the bytes say they are, and only where that is a raster format: a file called .jpg that holds HTML or SVG is sent to nobody.
"""

import os
import tarfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.images import ImageError, decode, encode
from curate.store import Pool, ShardHeader
from curate.tar import BLOCK, index_tar, split_name
from schemas.errors import StaleDatasetError
from schemas.sample import IMAGE_SUFFIXES
from train.reader import ImageReader, TarFile

# A picture of many megapixels that browsers cannot show is not worth a minute of decoding.
_MAX_PIXELS = 50_000_000
_MAX_BYTES = 64 << 20
# Between two tars that nobody asked for: requests go before.
_PAUSE_SECONDS = 0.05
_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
# Read at once: after a picture come the headers of its texts and mostly that of the next one.
_WINDOW = 8 * BLOCK
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
        self._is_closed = threading.Event()

    def warm(self, headers: Sequence[ShardHeader]) -> None:
        """Walk all tars in the background, so that pictures from anywhere come at once; a remote pool's are left alone."""
        if self._pool.is_local:
            threading.Thread(target=self._warm, args=(tuple(headers),), daemon=True).start()

    def close(self) -> None:
        """End the walk."""
        self._is_closed.set()

    def _warm(self, headers: Sequence[ShardHeader]) -> None:
        for header in headers:
            with suppress(ImageError):  # said to whoever asks for its pictures
                self.index(header)
            if self._is_closed.wait(_PAUSE_SECONDS):
                return

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
        """Return where the pictures of a shard lie in its tar, by key; 60 ms per ten thousand samples the first time."""
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
        position = start = 0
        window = b""
        while position + BLOCK <= end:
            at = position - start
            if at + BLOCK > len(window):
                window, start, at = os.pread(descriptor, _WINDOW, position), position, 0
            if window[at + 257 : at + 262] != b"ustar":
                return members if window[at : at + BLOCK] == bytes(BLOCK) else None
            if window[at + 156] not in b"07\0" or window[at + 345] or window[at + 124] & 0x80:
                return None
            name, size = window[at : at + 100].split(b"\0", 1)[0], int(window[at + 124 : at + 135], 8)
            offset = position + BLOCK
            if offset + size > end:
                return None
            if name.lower().endswith(_SUFFIXES):
                _add(members, name.decode("utf-8", "surrogateescape"), offset, size)
            position = offset + size + -size % BLOCK
    except (ValueError, IndexError):  # a size that is no number, a file that ends early
        return None
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
    """Note an image member by its keys, as the shard reader does; the first of a key counts."""
    keys, suffix = split_name(name)
    if suffix in IMAGE_SUFFIXES:
        for key in keys:
            members.setdefault(key, (offset, size))
