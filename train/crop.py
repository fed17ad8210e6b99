"""Which part of a picture is kept, and how many patches it gets where it keeps its aspect (NaViT, arXiv 2307.06304)."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
# top, left, height and width of the part of a picture that is kept, in pixels of the upright picture
Box = tuple[int, int, int, int]

BOX_NUMBERS = 4
_CROP_TRIES = 10


def fit_short_side(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the width and height of a picture whose short side becomes `side`; the long one is rounded down, as torchvision's Resize does."""
    if width <= height:
        return side, side * height // width
    return side * width // height, side


def random_box(
    height: int,
    width: int,
    draws: npt.NDArray[np.float64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Return a random crop: area uniform in `scale`, ratio log-uniform in `ratio`, tried ten times (Szegedy et al., 2015).

    Where no try fits, the largest central part whose ratio is allowed. `draws` are 22 numbers in [0, 1).
    """
    values = draws.tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for trial in range(_CROP_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * values[2 * trial])
        shape = math.exp(low + (high - low) * values[2 * trial + 1])
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(values[2 * _CROP_TRIES] * (height - box_height + 1))
            left = int(values[2 * _CROP_TRIES + 1] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def choose_crop(seeds: Sequence[int], count: int) -> npt.NDArray[np.int64]:
    """Return which of `count` stored crops each draw of a sample shows, by the draws' seeds."""
    return np.array([seed % count for seed in seeds], dtype=np.int64)


def stored_box(numbers: npt.NDArray[np.float32], height: int, width: int) -> Box:
    """Return a stored crop of a picture; raises ValueError where it is none of a picture of this size."""
    top, left, box_height, box_width = numbers.astype(np.int64).tolist()
    if min(top, left) < 0 or min(box_height, box_width) < 1 or top + box_height > height or left + box_width > width:
        raise ValueError(
            f"its stored crop {top, left, box_height, box_width} is not inside its {height} x {width} pixels"
        )
    return top, left, box_height, box_width


def fit_grid(height: int, width: int, patch_size: int, most: int) -> tuple[int, int]:
    """Return the rows and columns of patches that a picture is scaled to: its own aspect, its own size, at most `most` patches.

    Larger pictures are reduced, smaller ones are not enlarged but to the next whole patch. The aspect is off by less than one patch on
    either side, and long strips that would need more than `most` patches in a line are cut to that.
    """
    shrink = min(1.0, patch_size * math.sqrt(most / (height * width)))
    rows = max(1, round(height * shrink / patch_size))
    columns = max(1, round(width * shrink / patch_size))
    while rows * columns > most:  # both were rounded up; the side that keeps the aspect better gives way
        fewer = [pair for pair in ((rows - 1, columns), (rows, columns - 1)) if min(pair)]
        rows, columns = min(fewer, key=lambda pair: abs(math.log(pair[0] / pair[1] * width / height)))
    return rows, columns


def aspect_box(height: int, width: int, draws: npt.NDArray[np.float64], scale: tuple[float, float]) -> Box:
    """Return a random crop of the picture's own aspect, its area uniform in `scale`; `draws` are three numbers or more in [0, 1)."""
    area, down, across = draws[:3].tolist()
    side = math.sqrt(scale[0] + (scale[1] - scale[0]) * area)
    box_height, box_width = max(1, round(height * side)), max(1, round(width * side))
    return int(down * (height - box_height + 1)), int(across * (width - box_width + 1)), box_height, box_width


def to_patches(picture: Pixels, patch_size: int) -> Pixels:
    """Return a picture (rows * p, columns * p, 3) as patches in reading order, (rows * columns, p * p * 3), as SigLIP 2 takes them."""
    rows, columns = (side // patch_size for side in picture.shape[:2])
    parts = picture.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return parts.reshape(rows * columns, patch_size * patch_size * 3)
