import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.dataset_builder import draw_picture
from train.crop import aspect_box, fit_grid, to_patches

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (64, 64, (4, 4)),  # as it is
        (64, 32, (4, 2)),
        (40, 24, (2, 2)),  # 2.5 and 1.5 patches, to even
        (128, 128, (4, 4)),  # reduced to the budget of 16
        (256, 64, (8, 2)),
        (64, 640, (1, 13)),  # 1.26 by 12.6 patches
        (1, 5000, (1, 16)),  # a line
        (3, 3, (1, 1)),
    ],
)
def test_grids_by_hand(height: int, width: int, grid: tuple[int, int]) -> None:
    assert fit_grid(height, width, 16, 16) == grid


@given(SIDES, SIDES, st.sampled_from([8, 14, 16]), st.integers(1, 400))
def test_grids_keep_budget_size_and_aspect(height: int, width: int, patch: int, most: int) -> None:
    rows, columns = fit_grid(height, width, patch, most)
    assert 1 <= rows * columns <= most
    for count, side in ((rows, height), (columns, width)):
        assert count <= max(1, side / patch + 0.5)
    # Whole patches: each side is off by a patch at most, where the budget leaves both more than one.
    if min(rows, columns) > 1:
        assert abs(math.log(rows / columns * width / height)) <= 1 / (rows - 0.5) + 1 / (columns - 0.5)


def test_crops_keep_the_aspect() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((300, 100), (50, 400), (7, 7)):
        areas = []
        for _ in range(200):
            top, left, box_height, box_width = aspect_box(height, width, rng.random(22), (0.5, 1.0))
            assert 0 <= top <= height - box_height
            assert 0 <= left <= width - box_width
            assert box_height / box_width == pytest.approx(height / width, rel=0.2)
            areas.append(box_height * box_width / height / width)
        assert 0.4 < min(areas) < 0.6
        assert max(areas) > 0.9
    assert aspect_box(30, 20, np.zeros(3), (1.0, 1.0)) == (0, 0, 30, 20)


def test_patches_are_in_reading_order() -> None:
    picture = draw_picture(1, width=12, height=8)
    patches = to_patches(picture, 4)
    assert patches.shape == (6, 48)
    assert (patches[0].reshape(4, 4, 3) == picture[:4, :4]).all()
    assert (patches[2].reshape(4, 4, 3) == picture[:4, 8:]).all()
    assert (patches[3].reshape(4, 4, 3) == picture[4:, :4]).all()
