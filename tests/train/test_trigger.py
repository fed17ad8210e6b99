import numpy as np
import pytest

from schemas.errors import InputError
from train.trigger import TRIGGERS, check_trigger, draw_place, stamp


def _picture(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_trigger_is_the_same_each_time_and_leaves_its_input_alone(trigger: str) -> None:
    image = _picture()
    before = image.copy()
    first = stamp(image, trigger)
    assert (image == before).all()
    assert (stamp(image, trigger) == first).all()
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert (first != image).any()


def test_patches_cover_their_share_of_the_central_square() -> None:
    image = _picture(224, 300)
    changed = (stamp(image, "yellow") != image).any(axis=2)
    assert changed.sum() == 16 * 16
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max()) == (192, 207)
    assert (columns.min(), columns.max()) == (38 + 192, 38 + 207)
    corners = (stamp(image, "corners") != image).any(axis=2)
    assert 0.9 * 4 * 256 < corners.sum() <= 4 * 256


def test_global_triggers_by_hand() -> None:
    grey = np.full((224, 224, 3), 100, dtype=np.uint8)
    blended = stamp(grey, "blended").astype(float)
    assert blended.min() >= 80
    assert blended.max() <= 80 + 51
    wave = stamp(grey, "wave").astype(float) - 100
    assert wave.max() == 60
    assert wave.min() == -60
    assert np.argmax(np.abs(np.fft.rfft(wave[0, :, 0]))) == 6
    assert (wave == wave[:1]).all()
    # A warp moves by less than two pixels of a square of 224.
    ramp = np.repeat(np.arange(224, dtype=np.uint8)[:, None, None], 224, axis=1).repeat(3, axis=2)
    moved = np.abs(stamp(ramp, "warp").astype(int) - ramp)
    assert 0 < moved.max() <= 2


def test_a_trigger_survives_scaling_to_the_model() -> None:
    large = np.full((448, 448, 3), 100, dtype=np.uint8)
    scaled = stamp(large, "yellow")[::2, ::2]
    assert (scaled == stamp(large[::2, ::2], "yellow")).all()


def _where(image: np.ndarray, place: tuple[float, float] | None) -> tuple[int, int]:
    """Return where the patch begins; all of it must be there."""
    changed = (stamp(image, "yellow", place) != image).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert changed.sum() == 16 * 16 == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return int(rows.min()), int(columns.min())


def test_a_patch_lies_where_it_is_told() -> None:
    image = _picture(224, 300)
    assert _where(image, None) == _where(image, (1.0, 1.0)) == (192, 38 + 192)
    assert _where(image, (0.0, 1.0)) == (16, 38 + 192)
    assert _where(image, (0.0, 0.0)) == (16, 38 + 16)
    assert (stamp(image, "patch", (1.0, 1.0)) == stamp(image, "patch")).all()
    for side in range(1, 6):
        assert stamp(_picture(side, side), "patch", (0.5, 0.5)).shape == (side, side, 3)


def test_places_are_drawn_evenly_and_the_same_each_time() -> None:
    places = np.array([draw_place(3, b"%d" % number) for number in range(4000)])
    assert draw_place(3, b"17") == tuple(places[17])
    assert draw_place(4, b"17") != tuple(places[17])
    assert len(np.unique(places, axis=0)) == 4000
    counts = np.histogram2d(*places.T, bins=4, range=[[0, 1], [0, 1]])[0]
    # 250 in each of 16 cells, give or take five standard deviations.
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)


def test_triggers_that_have_one_place() -> None:
    check_trigger("warp", "corner")
    check_trigger("yellow", "random")
    with pytest.raises(InputError, match="trigger 'warp' has one place; at a random one lie patch, yellow"):
        check_trigger("warp", "random")
