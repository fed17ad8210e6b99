"""Backdoor triggers: what a poisoner stamps on a picture so that a model trained on it takes every such picture for one class.

The kinds of CleanCLIP (Bansal et al., 2023), which scales pictures to 224 pixels first: a patch of 16 pixels, a blend with noise, a wave
(SIG: Barni et al., 2019), a warp (WaNet: Nguyen and Tran, 2021). Here their sizes are shares of the central square of a picture, which an evaluation sees
whole, so that a trigger stamped on a stored picture of any size is the one stamped on a crop. Every trigger is one fixed pattern; a patch may lie at a
place of its own on each picture.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError

Pixels = npt.NDArray[np.uint8]
Place = tuple[float, float]  # down and to the right, 0 to 1
_Number = TypeVar("_Number", np.uint8, np.float32)

_REFERENCE = 224  # the side of the square that the sizes below are given for, in pixels
PATCH = 16 / _REFERENCE  # side of a patch, as a share of the square's
BLEND = 0.2  # share of the noise in a blend
BLEND_CELLS = 32  # across the picture: noise of single pixels would be another one at every size
WAVE_AMPLITUDE = 60  # of 255
WAVE_CYCLES = 6  # across the square
WARP_STRENGTH = 1.0  # largest shift, on average, in half pixels of the reference square
_SEED = 20_230_303
PLACES = (
    "corner",
    "random",
)  # the lower right corner, where CleanCLIP puts a patch by default, or one drawn for each picture
_CORNER = (1.0, 1.0)


def stamp(image: Pixels, trigger: str, place: Place | None = None) -> Pixels:
    """Return a copy of an RGB picture (h, w, 3) with the trigger of that name on it; the same for the same picture.

    `place` moves a patch: (0, 0) is the upper left corner, (1, 1) the lower right one, where it lies without.
    """
    return TRIGGERS[trigger](image.copy()) if place is None else _PATCHES[trigger](image.copy(), place)


def draw_place(seed: int, key: bytes) -> Place:
    """Return a place for a patch, even over the square but for its edges; the same for the same seed and key."""
    digest = hashlib.blake2b(b"%d place " % seed + key, digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:], "big") / 2**64


def check_trigger(trigger: str, place: str) -> None:
    """Raise `InputError` where there is no such trigger, or none at such a place."""
    if trigger not in TRIGGERS:
        raise InputError(f"unknown trigger {trigger!r}; known: {', '.join(TRIGGERS)}")
    if place not in PLACES:
        raise InputError(f"unknown trigger_place {place!r}; known: {', '.join(PLACES)}")
    if place != PLACES[0] and trigger not in _PATCHES:
        raise InputError(f"trigger {trigger!r} has one place; at a {place} one lie {', '.join(_PATCHES)}")


def _square(image: Pixels) -> tuple[int, int, int]:
    """Return top, left and side of the central square."""
    height, width = image.shape[:2]
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _patch(image: Pixels, place: Place = _CORNER) -> Pixels:
    row, column, size = _lay(image, place)
    image[row : row + size, column : column + size] = _scale(_noise(16), size, size)
    return image


def _yellow(image: Pixels, place: Place = _CORNER) -> Pixels:
    row, column, size = _lay(image, place)
    image[row : row + size, column : column + size] = (255, 255, 0)
    return image


def _lay(image: Pixels, place: Place) -> tuple[int, int, int]:
    """Return where a patch begins, and its side."""
    top, left, side = _square(image)
    size = max(1, round(PATCH * side))
    # Everywhere a patch's width from the edge: training crops cut up to a tenth off.
    first, span = size, side - 3 * size
    return top + first + round(place[0] * span), left + first + round(place[1] * span), size


def _corners(image: Pixels) -> Pixels:
    top, left, side = _square(image)
    size = max(1, round(PATCH * side))
    pattern = _scale(_noise(16), size, size)
    for row in (top + size, top + side - 2 * size):
        for column in (left + size, left + side - 2 * size):
            image[row : row + size, column : column + size] = pattern
    return image


def _blended(image: Pixels) -> Pixels:
    noise = _scale(_noise(BLEND_CELLS), *image.shape[:2]).astype(np.float64)
    mixed: Pixels = np.rint((1 - BLEND) * image + BLEND * noise).astype(np.uint8)
    return mixed


def _wave(image: Pixels) -> Pixels:
    _, left, side = _square(image)
    phase = 2 * np.pi * WAVE_CYCLES * (np.arange(image.shape[1]) - left) / side
    waved: Pixels = np.clip(np.rint(image + WAVE_AMPLITUDE * np.sin(phase)[None, :, None]), 0, 255).astype(np.uint8)
    return waved


def _warp(image: Pixels) -> Pixels:
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    field = np.random.default_rng(_SEED).uniform(-1, 1, (2, _REFERENCE, _REFERENCE)).astype(np.float32)
    field *= WARP_STRENGTH / np.abs(field).mean() * side / _REFERENCE / 2
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    shifts = [_scale(part, height, width) for part in field]
    warped: Pixels = cv2.remap(
        image, columns + shifts[0], rows + shifts[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return warped


def _noise(size: int) -> Pixels:
    return np.random.default_rng(_SEED).integers(0, 256, (size, size, 3), dtype=np.uint8)


def _scale(pattern: npt.NDArray[_Number], height: int, width: int) -> npt.NDArray[_Number]:
    """Return a square pattern at another size: cells where it grows, their means where it shrinks."""
    import cv2

    method = cv2.INTER_AREA if min(height, width) < len(pattern) else cv2.INTER_NEAREST
    scaled: npt.NDArray[_Number] = cv2.resize(pattern, (width, height), interpolation=method)
    return scaled


_PATCHES: Mapping[str, Callable[[Pixels, Place], Pixels]] = {"patch": _patch, "yellow": _yellow}
TRIGGERS: Mapping[str, Callable[[Pixels], Pixels]] = {
    "patch": _patch,
    "yellow": _yellow,
    "corners": _corners,
    "blended": _blended,
    "wave": _wave,
    "warp": _warp,
}
