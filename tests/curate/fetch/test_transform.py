"""One download: checks, stored pixels, EXIF, hash."""

import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from curate.fetch.config import DownloadConfig
from curate.fetch.transform import transform
from curate.images import decode

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def photo(width: int = 300, height: int = 200, *, orientation: int = 1, format: str = "JPEG") -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    image = Image.fromarray(np.stack([x % 256, y % 256, (x + y) // 2 % 256], -1).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    buffer = io.BytesIO()
    image.save(buffer, format, exif=exif)
    return buffer.getvalue()


def test_a_success_tells_everything() -> None:
    data = photo()
    result = transform(data, hashlib.sha256(data).hexdigest(), DownloadConfig(image_size=100, resize_mode="keep_ratio"))
    assert (result.status, result.error_message) == ("success", None)
    assert (result.width, result.height, result.original_width, result.original_height) == (150, 100, 300, 200)
    assert decode(result.image).shape == (100, 150, 3)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert json.loads(result.exif or "")["Image Make"] == "Camera"
    assert transform(data, None, DownloadConfig(image_size=100, resize_mode="keep_ratio")) == result


@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_turned_photos_are_stored_upright(orientation: int, format: str) -> None:
    data = photo(900, 600, orientation=orientation, format=format)
    for config in (DownloadConfig(image_size=100, resize_mode="keep_ratio"), DownloadConfig(resize_mode="no")):
        result = transform(data, None, config)
        assert (result.original_width, result.original_height) == (600, 900)
        assert result.width is not None
        assert result.height is not None
        assert result.width < result.height
        assert decode(result.image).shape[:2] == (result.height, result.width)


def test_failures_say_what_img2dataset_says() -> None:
    cases = {
        "image too small": DownloadConfig(min_image_size=201),
        "image area too large": DownloadConfig(max_image_area=59_999),
        "aspect ratio too large": DownloadConfig(max_aspect_ratio=1.4),
        "Image decoding error: more than 100 pixels": DownloadConfig(max_pixels=100),
    }
    for message, config in cases.items():
        result = transform(photo(), None, config)
        assert (result.status, result.error_message, result.image) == ("failed_to_resize", message, b"")
        assert result.sha256 is None
    assert transform(b"<html>", None, DownloadConfig()).status == "failed_to_resize"
    mismatch = transform(photo(), "0" * 64, DownloadConfig())
    assert (mismatch.status, mismatch.error_message) == ("failed_to_download", "hash mismatch")


def test_originals_are_kept_after_a_look_at_every_byte() -> None:
    data = photo(orientation=6)
    config = DownloadConfig(resize_mode="no", keep_original=True)
    result = transform(data, None, config)
    assert result.image == data
    assert (result.width, result.height) == (200, 300)
    assert transform(data[: len(data) // 2], None, config).error_message == "Image decoding error: truncated JPEG"


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_formats_of_storage(format: str) -> None:
    result = transform(photo(), None, DownloadConfig(image_size=64, encode_format=format))
    assert Image.open(io.BytesIO(result.image)).format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[format]


def test_columns_are_img2datasets_own() -> None:
    from img2dataset.resizer import Resizer

    for name, width, height in (
        ("keep_ratio", 640, 481),
        ("border", 100, 900),
        ("center_crop", 333, 250),
        ("keep_ratio_largest", 90, 91),
    ):
        data = photo(width, height)
        stored, *sizes, error = Resizer(128, name, False)(io.BytesIO(data))
        result = transform(data, None, DownloadConfig(image_size=128, resize_mode=name))
        assert error is None
        assert [result.width, result.height, result.original_width, result.original_height] == sizes
        assert np.abs(decode(result.image).astype(int) - decode(stored)).mean() < 4
