"""Size, file size and plain statistics of the stored picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.luma import planes
from curate.operator import Annotate, ShardOperator

# A bar at a picture's edge may differ this much (of 255) within itself: what JPEG does to a flat area.
_BORDER_TOLERANCE = 10
_BORDER_SAMPLES = 16
# Where a photograph is meant to be sharp; most of what a picture has when it was reduced for training.
_SHARPNESS_SIDE = 192
_BORDER_LINES = 16
# Pixels that a histogram is made of: 32 for each of its levels, at which the entropy of noise is 0.02 bits too low.
_HISTOGRAM_PIXELS = 8_192


@dataclass(frozen=True, kw_only=True)
class ImageStats(ShardOperator):
    """Size and statistics of the stored picture, upright; about 60 us for 256 x 340 pixels.

    image_width, image_height     pixels
    image_aspect_ratio            long side / short side, 1 and up (DataComp's basic filter keeps <= 3.0)
    image_file_bytes              bytes of the stored file (LAION keeps >= 5000 of the original)
    image_sharpness               variance of the 4-neighbour Laplacian of luma 0-255 in the middle 192 x 192 pixels, 0 and up; below
                                  about 100 looks blurred (Pech-Pacheco et al. 2000, Diatom autofocusing)
    image_brightness              mean luma, 0 to 1
    image_contrast                standard deviation of luma, 0 to 0.5
    image_entropy_bits            Shannon entropy of the 256-level luma histogram, 0 to 8; of every n-th row of a large picture
    image_border_ratio            share of the area in plain bars along the edges, 0 to 1 (1: the whole picture is plain)
    """

    name = "image_stats"
    version = 2
    reads = ("image_luma", "image_file_bytes")
    writes = pa.schema([
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("image_aspect_ratio", pa.float32()),
        ("image_file_bytes", pa.int64()),
        ("image_sharpness", pa.float32()),
        ("image_brightness", pa.float32()),
        ("image_contrast", pa.float32()),
        ("image_entropy_bits", pa.float32()),
        ("image_border_ratio", pa.float32()),
    ])

    def load(self) -> Annotate:
        return _annotate


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    import cv2

    num_rows = batch.num_rows
    sizes = np.zeros((num_rows, 2), dtype=np.int32)
    histograms = np.zeros((num_rows, 256), dtype=np.float64)
    sharpness, brightness, contrast, borders = np.zeros((4, num_rows))
    for row, luma in enumerate(planes(batch.column("image_luma"))):
        sizes[row] = luma.shape
        mean, deviation = cv2.meanStdDev(luma)
        brightness[row], contrast[row] = mean[0, 0], deviation[0, 0]
        histograms[row] = cv2.calcHist([luma[:: _stride(luma)]], [0], None, [256], [0, 256])[:, 0]
        edges = cv2.Laplacian(_middle(luma), cv2.CV_16S, ksize=1)
        sharpness[row] = cv2.meanStdDev(edges)[1][0, 0] ** 2
        borders[row] = measure_border(luma)
    shares = histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return {
        "image_width": sizes[:, 1],
        "image_height": sizes[:, 0],
        "image_aspect_ratio": (sizes.max(axis=1) / np.maximum(sizes.min(axis=1), 1)).astype(np.float32),
        "image_file_bytes": batch.column("image_file_bytes"),
        "image_sharpness": sharpness.astype(np.float32),
        "image_brightness": (brightness / 255).astype(np.float32),
        "image_contrast": (contrast / 255).astype(np.float32),
        "image_entropy_bits": (-(shares * logs).sum(axis=1) + 0.0).astype(np.float32),
        "image_border_ratio": borders.astype(np.float32),
    }


def measure_border(luma: np.ndarray) -> float:
    """Return the share of the area in bars of one shade along the four edges; each edge has its own shade."""
    height, width = luma.shape
    top, bottom = _count_plain(luma, 0, False), _count_plain(luma, 0, True)
    if top + bottom >= height:  # plain, or two plain halves
        return 1.0
    rest = luma[top : height - bottom]
    left, right = _count_plain(rest, 1, False), _count_plain(rest, 1, True)
    # Where a shade changes slowly, the bars of two edges may overlap.
    return float(1.0 - (height - top - bottom) * max(0, width - left - right) / (height * width))


def _count_plain(luma: np.ndarray, axis: int, is_backwards: bool) -> int:
    """Return how many rows (axis 0) or columns (axis 1), from the first on or from the last back, hold one shade between them."""
    # Most pictures have no bar: look at a few points of a line before looking at the whole.
    edge = luma[-1 if is_backwards else 0] if axis == 0 else luma[:, -1 if is_backwards else 0]
    sample = edge[:: max(1, len(edge) // _BORDER_SAMPLES)].tolist()
    if max(sample) - min(sample) > _BORDER_TOLERANCE:
        return 0
    if int(edge.max()) - int(edge.min()) > _BORDER_TOLERANCE:
        return 0
    # Bars are thin: look at a few lines, then at twice as many, before looking at all of them.
    length, size, first = int(luma.shape[axis]), _BORDER_LINES, 0
    low, high = 255, 0
    while first < length:
        size = min(size, length - first)
        start = length - first - size if is_backwards else first
        window = luma[start : start + size] if axis == 0 else luma[:, start : start + size]
        lowest, highest = min(low, int(window.min())), max(high, int(window.max()))
        if highest - lowest > _BORDER_TOLERANCE:
            return first + _find_end(window, axis, is_backwards, low, high)
        low, high, first, size = lowest, highest, first + size, 2 * size
    return length


def _find_end(window: np.ndarray, axis: int, is_backwards: bool, low: int, high: int) -> int:
    """Return how many lines of `window` go on with the shade between `low` and `high`."""
    lowest, highest = window.min(axis=1 - axis), window.max(axis=1 - axis)
    if is_backwards:
        lowest, highest = lowest[::-1], highest[::-1]
    lowest = np.minimum(np.minimum.accumulate(lowest), low).astype(np.int16)
    spread = np.maximum(np.maximum.accumulate(highest), high) - lowest
    return int(np.searchsorted(spread, _BORDER_TOLERANCE, side="right"))


def _middle(luma: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - _SHARPNESS_SIDE) // 2) for side in luma.shape)
    return luma[top : top + _SHARPNESS_SIDE, left : left + _SHARPNESS_SIDE]


def _stride(luma: np.ndarray) -> int:
    return max(1, luma.size // _HISTOGRAM_PIXELS)
