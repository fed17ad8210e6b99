"""The EXIF column is what img2dataset writes."""

import io
import json

import exifread
import pytest
from PIL import Image

from curate.fetch.exif import read_exif


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("has_tags", [False, True])
def test_same_tags(format: str, has_tags: bool) -> None:
    image = Image.new("RGB", (8, 8))
    exif = image.getexif()
    if has_tags:
        exif[0x010E] = "a  caf\u00e9 \0 "
        exif[0x0112] = 3
    buffer = io.BytesIO()
    image.save(buffer, format, **({"exif": exif} if has_tags and format != "GIF" else {}))
    tags = exifread.process_file(io.BytesIO(buffer.getvalue()), details=False)
    assert json.loads(read_exif(buffer.getvalue()) or "null") == {k: str(v).strip() for k, v in tags.items()}


def test_bytes_without_sense() -> None:
    assert read_exif(b"\xff\xd8\xff\xe0\0\4ab") == "{}"
    assert read_exif(b"") in {"{}", None}
