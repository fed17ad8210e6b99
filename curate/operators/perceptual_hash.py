"""A 64-bit hash that survives scaling and re-encoding."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.luma import planes
from curate.operator import Annotate, ShardOperator

# Bits of odd horizontal frequencies: a mirrored picture's coefficients there change their sign, all others stay.
MIRROR = np.uint64(0x5555555555555555)
# The hash of a picture with any detail has half its bits set; fewer than this many mean a plain one, alike to every other plain one.
MIN_DETAIL_BITS = 16
_SIDE = 32
_FREQUENCIES = 8
# The smallest short side that is halved before averaging.
_HALVED_SIDE = 3 * _SIDE
# Coefficients are compared after rounding, so that a plain picture does not hash the rounding errors of its zeros.
_DECIMALS = 2
_CACHED_LENGTHS = 4096


@dataclass(frozen=True, kw_only=True)
class PerceptualHash(ShardOperator):
    """The DCT hash "pHash" (Zauner 2010) of the picture as a 64-bit number; about 30 us for 256 x 340 pixels.

    Luma, averaged to 32 x 32 pixels, two-dimensional DCT-II, the 8 x 8 lowest frequencies: a bit is 1 where the coefficient is above
    the median of the 64. The highest bit is the constant term; then row by row, horizontal frequency rising fastest. Two pictures are
    near copies at a Hamming distance of 10 or less, 4 to 6 for removal without looking: `bit_count(xor(a, b))` in SQL.
    A mirrored or rotated picture has another hash.
    """

    name = "perceptual_hash"
    version = 1
    reads = ("image_luma",)
    writes = pa.schema([("image_perceptual_hash", pa.uint64())])

    def load(self) -> Annotate:
        return _annotate


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    import cv2

    coefficients = np.zeros((batch.num_rows, _FREQUENCIES**2))
    for row, whole in enumerate(planes(batch.column("image_luma"))):
        luma = _halve(whole)
        # The mean only moves the constant term; without it single precision is enough for the others.
        mean = cv2.mean(luma)[0]
        centred = luma.astype(np.float32) - np.float32(mean)
        # Averaging and transform are both linear, so one matrix per side does the two of them at once.
        transformed = _lowpass(luma.shape[0]) @ centred @ _lowpass(luma.shape[1]).T
        coefficients[row] = transformed.reshape(-1)
        coefficients[row, 0] += 4 * _SIDE**2 * mean
    rounded = np.round(coefficients, _DECIMALS)
    bits = rounded > np.median(rounded, axis=1, keepdims=True)
    hashes = np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)
    return {"image_perceptual_hash": pa.array(hashes)}


def _halve(luma: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels while both sides remain well above the 32 of the hash: fast, and lost in the averaging that follows."""
    import cv2

    while min(luma.shape) >= _HALVED_SIDE:
        height, width = luma.shape[0] // 2, luma.shape[1] // 2
        luma = cv2.resize(luma[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return luma


@functools.lru_cache(maxsize=_CACHED_LENGTHS)
def _lowpass(length: int) -> np.ndarray:
    """Return the 8 x length matrix that averages a line of pixels to 32 and takes its 8 lowest DCT-II coefficients."""
    positions = np.arange(length + 1) * (_SIDE / length)
    cells = np.arange(_SIDE)[:, None]
    # The part of cell c that pixel p covers, in units of the cell: area averaging, also when enlarging.
    covered = np.clip(np.minimum(positions[1:], cells + 1) - np.maximum(positions[:-1], cells), 0, None)
    frequencies = np.arange(_FREQUENCIES)[:, None]
    transform = 2 * np.cos(np.pi * frequencies * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
    return np.asarray((transform @ covered).astype(np.float32))
