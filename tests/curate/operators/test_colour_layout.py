"""Colours by cell."""

import numpy as np

from curate.operators.colour_layout import ColourLayout
from tests.contract import check_operator, column, picture_input, run

FINGERPRINT = "0e70297cf5e6883ad79c4971fedaf8dbebfd16d9650f1c77340d7404c7520414"


def layout(picture: np.ndarray) -> np.ndarray:
    output = run(ColourLayout(), {"image": picture_input([picture])}, 1)
    return np.frombuffer(column(output, "image_colour_layout")[0], np.uint8).reshape(8, 8, 2)


def test_contract() -> None:
    output = check_operator(ColourLayout(), fingerprint=FINGERPRINT)
    assert len(column(output, "image_colour_layout")[0]) == 128


def test_cells_hold_the_colours_where_they_are() -> None:
    picture = np.full((80, 160, 3), 90, np.uint8)
    picture[:, :80] = (200, 30, 30)
    found = layout(picture)
    assert (found[:, :4, 0] > 180).all()
    assert (found[:, 4:] == 128).all()


def test_brightness_does_not_count() -> None:
    random = np.random.default_rng(0)
    grey = np.repeat(random.integers(0, 256, (50, 70, 1), dtype=np.uint8), 3, axis=2)
    assert np.abs(layout(grey).astype(int) - 128).max() <= 1


def test_any_size() -> None:
    for shape in ((1, 1, 3), (2, 20_000, 3), (20_000, 2, 3)):
        assert layout(np.zeros(shape, np.uint8)).shape == (8, 8, 2)
