"""Blurred boxes: nothing sharp is left inside, nothing changes outside."""

import numpy as np
import pytest

from curate.blur import blur_boxes


def checkers(height: int = 120, width: int = 160) -> np.ndarray:
    squares = np.indices((height, width)).sum(axis=0) % 2 * 255
    return np.repeat(squares[:, :, None], 3, axis=2).astype(np.uint8)


def test_inside_is_flat_and_outside_untouched() -> None:
    picture = checkers()
    blurred = blur_boxes(picture, [(0.25, 0.25, 0.5, 0.75)])
    assert blurred.shape == picture.shape
    assert np.ptp(blurred[30:90, 40:80].astype(int)) < 20
    outside = np.ones(picture.shape[:2], bool)
    outside[21:99, 34:86] = False  # the box and its margin of 15 %
    assert (blurred[outside] == picture[outside]).all()
    assert (picture == checkers()).all()  # the argument is left alone


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [(0.5, 0.5, 0.5, 0.5)],  # empty
        [(-1.0, -1.0, 0.0, 0.0)],  # outside
        [(0.0, 0.0, 1.0, 1.0)],  # everything
        [(0.99, 0.99, 1.0, 1.0), (0.0, 0.0, 0.001, 1.0)],  # slivers
    ],
)
def test_odd_boxes(boxes: list[tuple[float, ...]]) -> None:
    picture = checkers()
    blurred = blur_boxes(picture, boxes)
    assert blurred.dtype == np.uint8
    assert blurred.shape == picture.shape


def test_tiny_pictures() -> None:
    assert blur_boxes(np.zeros((1, 1, 3), np.uint8), [(0, 0, 1, 1)]).shape == (1, 1, 3)
    assert blur_boxes(np.zeros((2, 20_000, 3), np.uint8), [(0, 0, 1, 1)]).shape == (2, 20_000, 3)
