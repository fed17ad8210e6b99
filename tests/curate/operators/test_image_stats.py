"""Sizes, bytes and statistics of pictures, against values known beforehand."""

import math

import numpy as np
import pytest

from curate.columns import Input
from curate.operators.image_stats import ImageStats, measure_border
from tests.contract import check_operator, column, make_inputs, picture_input, run
from tests.pool import BORDER_ROW, CORRUPT_ROW, make_rows

FINGERPRINT = "0f8659270970f53e3a9abed6664fef0fe418d0d136dbf56fbfb2b84a55e64b5f"


def measure(*pictures: np.ndarray) -> dict[str, list[float]]:
    import pyarrow as pa

    inputs = {
        "image_luma": picture_input(pictures, "image_luma"),
        "image_file_bytes": Input.from_column(pa.array([5] * len(pictures), pa.int64())),
    }
    output = run(ImageStats(), inputs, len(pictures))
    return {name: column(output, name) for name in ImageStats.writes.names}


def test_contract() -> None:
    operator = ImageStats()
    output = check_operator(operator, fingerprint=FINGERPRINT)
    rows = make_rows(23)
    assert column(output, "image_width")[0] == 80
    assert column(output, "image_height")[0] == 72
    assert column(output, "image_file_bytes")[0] == len(rows[0].image or b"")
    assert output.errors[CORRUPT_ROW] == "Image decoding error: truncated JPEG"
    assert column(output, "image_border_ratio")[BORDER_ROW] == pytest.approx(0.4, abs=0.05)
    assert make_inputs(operator)["image_luma"].valid[0]


def test_a_plain_picture_has_nothing_in_it() -> None:
    grey = np.full((40, 60, 3), 51, dtype=np.uint8)
    found = measure(grey)
    assert found["image_aspect_ratio"] == [1.5]
    assert found["image_file_bytes"] == [5]
    assert found["image_sharpness"] == [0.0]
    assert found["image_brightness"][0] == pytest.approx(0.2)
    assert found["image_contrast"] == [0.0]
    assert found["image_entropy_bits"] == [0.0]
    assert found["image_border_ratio"] == [1.0]


def test_half_black_half_white() -> None:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:, 32:] = 255
    found = measure(picture)
    assert found["image_brightness"][0] == pytest.approx(0.5)
    assert found["image_contrast"][0] == pytest.approx(0.5)
    assert found["image_entropy_bits"][0] == pytest.approx(1.0)
    # The Laplacian is +255 and -255 in the two columns beside the edge and 0 elsewhere.
    assert found["image_sharpness"][0] == pytest.approx(2 * 64 * 255**2 / 64**2)


def test_entropy_of_all_levels_is_eight_bits() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert measure(ramp)["image_entropy_bits"][0] == pytest.approx(8.0)


def test_blur_lowers_sharpness() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    smooth = np.repeat(np.repeat(noise[::8, ::8], 8, axis=0), 8, axis=1)
    sharp, blurred = measure(noise, smooth)["image_sharpness"]
    assert sharp > 2 * blurred > 0


@pytest.mark.parametrize(
    ("top", "bottom", "left", "right"), [(0, 0, 0, 0), (10, 10, 0, 0), (0, 0, 7, 3), (5, 0, 0, 9), (4, 3, 2, 1)]
)
def test_border_ratio_is_the_share_of_the_bars(top: int, bottom: int, left: int, right: int) -> None:
    random = np.random.default_rng(1)
    luma = np.full((60, 80), 255, dtype=np.uint8)
    luma[top : 60 - bottom, left : 80 - right] = random.integers(0, 200, (60 - top - bottom, 80 - left - right))
    inner = (60 - top - bottom) * (80 - left - right)
    assert measure_border(luma) == pytest.approx(1 - inner / (60 * 80))


def test_a_gradient_is_no_border() -> None:
    gradient = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[:, None], 64, axis=1)
    assert measure_border(gradient) < 0.15


def test_bars_of_two_shades_count_both() -> None:
    luma = np.random.default_rng(2).integers(0, 256, (100, 50)).astype(np.uint8)
    luma[:20], luma[80:] = 0, 255
    assert measure_border(luma) == pytest.approx(0.4)


def test_one_pixel() -> None:
    found = measure(np.full((1, 1, 3), 7, dtype=np.uint8))
    assert found["image_aspect_ratio"] == [1.0]
    assert all(math.isfinite(values[0]) for values in found.values())


@pytest.mark.parametrize("axis", [0, 1])
def test_two_plain_halves_are_all_border(axis: int) -> None:
    luma = np.full((40, 40), 20, dtype=np.uint8)
    luma[20:] = 200
    assert measure_border(luma if axis == 0 else luma.T.copy()) == 1.0


def test_bars_that_overlap_are_counted_once() -> None:
    # From either edge the shade keeps within the tolerance past the middle; from top to bottom nothing is plain.
    luma = np.repeat(np.linspace(100, 116, 40).round().astype(np.uint8)[None], 40, axis=0)
    assert measure_border(luma) == 1.0
