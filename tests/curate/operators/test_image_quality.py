"""Each measure rises with what was planted, and nothing crashes."""

import io
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from curate.operators.image_quality import ImageQuality
from tests.contract import check_operator, column, picture_input, run

FINGERPRINT = "5bcc13589e39ae6209df1a0e1d4dced5dcd29df1dc1677715aac3262ec741b5c"


def photo(seed: int = 0, width: int = 240, height: int = 200) -> np.ndarray:
    """Return smooth colours with fine texture: the spectrum of a photo."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for side in (3, 6, 12, 24, 48, 96):
        layer = random.normal(0, 90 / side**0.6, (side, side, 3)).astype(np.float32)
        picture += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + 120, 0, 255).astype(np.uint8)


def measure(*pictures: np.ndarray) -> dict[str, list[Any]]:
    output = run(ImageQuality(), {"image": picture_input(pictures)}, len(pictures))
    assert not any(output.errors)
    return {name: column(output, name) for name in ImageQuality.writes.names}


def is_rising(values: list[float]) -> bool:
    return all(after > before for before, after in pairwise(values))


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def window() -> np.ndarray:
    picture = Image.new("RGB", (320, 240), (245, 245, 245))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 320, 24), fill=(50, 80, 160))
    pen.rectangle((20, 60, 140, 200), outline=(90, 90, 90), fill=(255, 255, 255))
    for line in range(8):
        pen.text((160, 50 + 20 * line), f"File  Edit  View  {line}", fill=(20, 20, 20), font=ImageFont.load_default(12))
    return np.asarray(picture)


def test_contract() -> None:
    check_operator(ImageQuality(), fingerprint=FINGERPRINT)


def test_blur() -> None:
    sharp = photo()
    assert is_rising(
        measure(sharp, *(cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (1, 2, 4)))["image_blur_score"]
    )


def test_noise() -> None:
    random = np.random.default_rng(1)
    base = cv2.GaussianBlur(photo(), (0, 0), 3)
    noisy = [np.clip(base + random.normal(0, s, base.shape), 0, 255).astype(np.uint8) for s in (4, 8, 16)]
    found = measure(base, *noisy)["image_noise"]
    assert is_rising(found)
    # Luma averages three channels of independent noise, weighted.
    for sigma, value in zip((4, 8, 16), found[1:], strict=True):
        assert value == pytest.approx(sigma * np.sqrt(0.299**2 + 0.587**2 + 0.114**2), rel=0.25)


def test_blockiness() -> None:
    found = measure(photo(), *(jpeg(photo(), quality) for quality in (30, 10, 3)))["image_blockiness"]
    assert found[0] == pytest.approx(1.0, abs=0.1)
    assert is_rising(found)
    assert found[-1] > 1.5


def test_bars() -> None:
    framed = np.zeros((300, 400, 3), np.uint8)
    framed[50:250] = photo(width=400, height=200)
    sides = np.full((200, 400, 3), 255, np.uint8)
    sides[:, 100:300] = photo(width=200, height=200)
    found = measure(photo(), framed, sides)["image_bar_ratio"]
    assert found == pytest.approx([0.0, 1 / 3, 1 / 2], abs=0.02)


def test_a_red_mark_on_a_black_drawing_is_a_colour() -> None:
    drawing = np.full((100, 100, 3), 255, np.uint8)
    drawing[20:22, 10:90] = 0
    marked, speck = drawing.copy(), drawing.copy()
    marked[60:64, 10:70] = (220, 30, 30)
    speck[60:63, 10:16] = (220, 30, 30)
    assert measure(drawing, marked, speck)["is_image_grey"] == [True, False, True]


def test_solid_and_grey() -> None:
    grey = np.repeat(photo()[:, :, :1], 3, axis=2)
    found = measure(np.full((90, 70, 3), 130, np.uint8), grey, photo())
    assert found["is_image_solid"] == [True, False, False]
    assert found["is_image_grey"] == [True, True, False]
    assert found["image_num_colours"][0] == 1
    assert found["image_num_colours"][2] > 200
    assert found["image_blur_score"][0] == 1.0


def test_screenshots() -> None:
    found = measure(window(), photo(), np.zeros((100, 100, 3), np.uint8))
    assert found["is_image_screenshot"] == [True, False, False]
    assert found["image_flat_ratio"][0] > 0.7 > found["image_flat_ratio"][1]


def test_qr_codes() -> None:
    code = cv2.QRCodeEncoder.create().encode("https://example.org")
    picture = np.full((260, 260, 3), 255, np.uint8)
    picture[30:230, 30:230] = cv2.resize(code, (200, 200), interpolation=cv2.INTER_NEAREST)[:, :, None]
    assert measure(picture, photo(), window())["image_has_qr_code"] == [True, False, False]


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (1, 9, 3), (9, 1, 3), (2, 20_000, 3), (20_000, 2, 3), (2, 2, 3), (17, 16, 3)]
)
@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_any_picture(shape: tuple[int, int, int], kind: str) -> None:
    made = {
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
    }
    found = measure(made[kind])
    for name in ("image_blur_score", "image_bar_ratio", "image_flat_ratio"):
        assert 0 <= found[name][0] <= 1
    assert np.isfinite([found["image_blockiness"][0], found["image_noise"][0]]).all()
