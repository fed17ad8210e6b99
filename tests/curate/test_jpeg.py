"""The bytes in front of a JPEG's pixels."""

import io
import itertools

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curate.jpeg import count_scans, drop_junk, read_orientation, read_segments


def picture(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_segments_end_with_the_scan() -> None:
    segments = list(read_segments(picture()))
    assert segments[0].marker == 0xE0
    assert segments[-1].marker == 0xDA
    assert all(a.end == b.start for a, b in itertools.pairwise(segments))


def test_orientation_in_both_byte_orders() -> None:
    for order, number in (
        (b"II*\0", lambda n, size: n.to_bytes(size, "little")),
        (b"MM\0*", lambda n, size: n.to_bytes(size, "big")),
    ):
        entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(6, 2) + b"\0\0"
        tiff = order + number(8, 4) + number(1, 2) + entry + number(0, 4)
        body = b"Exif\0\0" + tiff
        data = picture()
        marked = data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
        assert read_orientation(marked) == 6
    assert read_orientation(picture()) == 1
    assert read_orientation(b"\xff\xd8\xff") == 1


def test_scans_are_counted_in_progressive_files_only() -> None:
    assert count_scans(picture()) == 1
    assert count_scans(picture(progressive=True)) > 3


def test_drop_junk_leaves_clean_files_alone() -> None:
    data = picture()
    assert drop_junk(data) == data
    first = next(read_segments(data))
    assert drop_junk(data[: first.end] + b"noise" + data[first.end :]) == data
    assert drop_junk(b"\xff\xd8\xff\xe0") == b"\xff\xd8\xff\xe0"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_to_an_end(data: bytes) -> None:
    assert read_orientation(b"\xff\xd8" + data) in range(1, 9)
    assert count_scans(b"\xff\xd8" + data) >= 0
