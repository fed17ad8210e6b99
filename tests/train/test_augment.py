from random import Random

import numpy as np

from tests.train.dataset_builder import draw_picture
from train.augment import augment_picture


def augmented(seed: int, size: int = 48) -> np.ndarray:
    picture = draw_picture(3, width=size, height=size)
    augment_picture(picture, Random(seed))
    return picture


def test_the_seed_decides() -> None:
    assert np.array_equal(augmented(5), augmented(5))
    assert len({augmented(seed).tobytes() for seed in range(30)}) >= 25


def test_each_change_has_its_rate() -> None:
    original = draw_picture(3, width=48, height=48).astype(int)
    grey = flipped = untouched = 0
    for seed in range(600):
        found = augmented(seed).astype(int)
        grey += np.ptp(found, axis=2).max() == 0
        plain, mirrored = (np.abs(found - other).mean() for other in (original, original[:, ::-1]))
        flipped += mirrored < plain
        untouched += plain == 0
    assert 0.15 < grey / 600 < 0.25
    assert 0.4 < flipped / 600 < 0.6
    # No flip, no jitter, not grey, no blur: 0.5 x 0.2 x 0.8 x 0.5, and as much again where the blur is less than a pixel wide.
    assert 0.02 < untouched / 600 < 0.1


def test_blur_goes_with_the_size() -> None:
    # A tiny picture is not blurred away.
    assert all(np.ptp(augmented(seed, size=8)) > 20 for seed in range(50))
