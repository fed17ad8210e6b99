import numpy as np
import pytest

from train.trigger import TRIGGERS, stamp


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
