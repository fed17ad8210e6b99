"""What lies in front of a JPEG's pixels: segments, EXIF orientation, junk between markers. No decoder: `curate.images` has those."""

from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\xff\xd8\xff"
# Browsers and libjpeg-turbo's own fuzzers stop here; each scan of a progressive file costs a pass over the whole picture.
MAX_SCANS = 500

_SOS = 0xDA
_EOI = 0xD9
_APP1 = 0xE1
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_STANDALONE = frozenset([0x01, *range(0xD0, 0xD8)])
_EXIF_HEADER = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112


class Segment(NamedTuple):
    """A marker segment of the header: `start` is its 0xFF, `end` the byte after it."""

    marker: int
    start: int
    end: int


def read_segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments between the signature and the first scan; the scan's own header is the last. Junk between segments is skipped."""
    position = 2
    size = len(data)
    while position + 4 <= size:
        start = data.find(b"\xff", position)
        if start < 0:
            return
        position = start + 1
        while position < size and data[position] == 0xFF:  # fill bytes
            position += 1
        if position + 3 > size:
            return
        marker = data[position]
        position += 1
        if marker == 0 or marker in _STANDALONE:
            continue
        if marker == _EOI:
            return
        end = position + int.from_bytes(data[position : position + 2], "big")
        if end < position + 2 or end > size:
            return
        yield Segment(marker, position - 2, end)
        if marker == _SOS:
            return
        position = end


def read_orientation(data: bytes) -> int:
    """Return the EXIF orientation (1 to 8), 1 where there is none or it makes no sense."""
    for segment in read_segments(data):
        body = segment.start + 4
        if segment.marker == _APP1 and data[body : body + 6] == _EXIF_HEADER:
            return _tiff_orientation(data[body + 6 : segment.end])
    return 1


def count_scans(data: bytes) -> int:
    """Return at least the number of scans of a progressive file (thumbnails count too), 1 for a sequential one."""
    is_progressive = any(segment.marker in _PROGRESSIVE for segment in read_segments(data))
    return data.count(b"\xff\xda") if is_progressive else 1


def drop_junk(data: bytes) -> bytes:
    """Return the file without bytes that belong to no segment of its header; decoders warn of them as if pixels were damaged."""
    segments = list(read_segments(data))
    if not segments or segments[-1].marker != _SOS:
        return data
    return b"".join((data[:2], *(data[s.start : s.end] for s in segments), data[segments[-1].end :]))


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1

    def number(offset: int, size: int) -> int:
        return int.from_bytes(tiff[offset : offset + size], "little" if order == "little" else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * min(number(directory, 2), 512), 12):
        if entry + 12 > len(tiff):
            break
        if number(entry, 2) == _ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
