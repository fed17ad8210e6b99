"""The hash against a plain implementation of its definition, and against edits of one picture."""

import numpy as np
import pytest
from PIL import Image

from curate.operators.perceptual_hash import PerceptualHash
from tests.contract import check_operator, column, picture_input, run
from tests.pool import COPY_ROW, draw

FINGERPRINT = "2b3688ee88eb64630576a62db308b81be95f75419250a12547383a6d505eeb7d"


def hash_pictures(*pictures: np.ndarray) -> list[int]:
    inputs = {"image_luma": picture_input(pictures, "image_luma")}
    return column(run(PerceptualHash(), inputs, len(pictures)), "image_perceptual_hash")


def distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def reference(luma: np.ndarray) -> int:
    """The definition for a 32 x 32 picture: DCT-II by its sum, low 8 x 8, above the median, row by row, highest bit first."""
    positions = np.arange(32)
    basis = np.array([2 * np.cos(np.pi * k * (2 * positions + 1) / 64) for k in range(8)])
    coefficients = np.einsum("ai,ij,bj->ab", basis, luma.astype(np.float64), basis).round(2)
    bits = (coefficients > np.median(coefficients)).reshape(-1)
    return int("".join("1" if bit else "0" for bit in bits), 2)


def smooth_picture(seed: int, size: int = 256) -> Image.Image:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def test_contract() -> None:
    output = check_operator(PerceptualHash(), fingerprint=FINGERPRINT)
    hashes = column(output, "image_perceptual_hash")
    assert hashes[0] == hashes[COPY_ROW]
    assert len({value for value in hashes if value is not None}) > 10


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_hash_it_says(seed: int) -> None:
    luma = np.random.default_rng(seed).integers(0, 256, (32, 32)).astype(np.uint8)
    (found,) = hash_pictures(np.repeat(luma[:, :, None], 3, axis=2))
    assert found == reference(luma)


def test_averaging_is_by_area() -> None:
    luma = np.random.default_rng(9).integers(0, 256, (32, 32)).astype(np.uint8)
    large = np.repeat(np.repeat(luma, 5, axis=0), 2, axis=1)
    (found,) = hash_pictures(np.repeat(large[:, :, None], 3, axis=2))
    assert found == reference(luma)


@pytest.mark.parametrize("seed", range(5))
def test_edits_stay_near_and_other_pictures_far(seed: int) -> None:
    import io

    picture = smooth_picture(seed)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=30)
    edits = [
        picture.resize((97, 140), Image.Resampling.BILINEAR),
        Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"),
        Image.fromarray((np.asarray(picture) * 0.8).astype(np.uint8)),
    ]
    original, *edited = hash_pictures(np.asarray(picture), *(np.asarray(edit) for edit in edits))
    assert max(distance(original, other) for other in edited) <= 6
    (stranger,) = hash_pictures(np.asarray(smooth_picture(seed + 100)))
    assert distance(original, stranger) > 10


def test_a_mirrored_picture_is_another() -> None:
    picture = np.asarray(draw((200, 30, 40), "circle", seed=3, width=200, height=150))
    first, second = hash_pictures(picture, np.ascontiguousarray(picture[:, ::-1]))
    assert distance(first, second) > 10


def test_a_plain_picture_has_one_bit() -> None:
    pictures = [np.full((height, 77, 3), 128, dtype=np.uint8) for height in (1, 50, 333)]
    assert hash_pictures(*pictures) == [1 << 63] * 3
