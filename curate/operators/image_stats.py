"""Size, file size and plain statistics of the stored picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.images import pixels
from curate.operator import Annotate, ShardOperator

# A bar at a picture's edge may differ this much (of 255) within itself: what JPEG does to a flat area.
_BORDER_TOLERANCE = 10
_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class ImageStats(ShardOperator):
    """Size and statistics of the stored picture, upright; about 0.1 ms for 256 x 340 pixels.

    image_width, image_height     pixels
    image_aspect_ratio            long side / short side, 1 and up (DataComp's basic filter keeps <= 3.0)
    image_file_bytes              bytes of the stored file (LAION keeps >= 5000 of the original)
    image_sharpness               variance of the 4-neighbour Laplacian of luma 0-255, 0 and up; below about 100 looks blurred
                                  (Pech-Pacheco et al. 2000, Diatom autofocusing)
    image_brightness              mean luma, 0 to 1
    image_contrast                standard deviation of luma, 0 to 0.5
    image_entropy_bits            Shannon entropy of the 256-level luma histogram, 0 to 8
    image_border_ratio            share of the area in plain bars along the edges, 0 to 1 (1: the whole picture is plain)
    """

    name = "image_stats"
    version = 1
    reads = ("image", "image_file")
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

    cv2.setNumThreads(1)
    num_rows = batch.num_rows
    sizes = np.zeros((num_rows, 2), dtype=np.int32)
    histograms = np.zeros((num_rows, 256), dtype=np.float64)
    sharpness = np.zeros(num_rows)
    borders = np.zeros(num_rows)
    for row, picture in enumerate(pixels(batch.column("image"))):
        assert picture is not None  # `image` is not nullable
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        sizes[row] = luma.shape
        histograms[row] = cv2.calcHist([luma], [0], None, [256], [0, 256])[:, 0]
        edges = cv2.Laplacian(luma, cv2.CV_16S, ksize=1)
        sharpness[row] = cv2.meanStdDev(edges)[1][0, 0] ** 2
        borders[row] = measure_border(luma)
    shares = histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1)
    mean = shares @ _LEVELS
    variance = np.maximum(shares @ _LEVELS**2 - mean**2, 0)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return {
        "image_width": sizes[:, 1],
        "image_height": sizes[:, 0],
        "image_aspect_ratio": (sizes.max(axis=1) / np.maximum(sizes.min(axis=1), 1)).astype(np.float32),
        "image_file_bytes": pc.binary_length(batch.column("image_file")).cast(pa.int64()),
        "image_sharpness": sharpness.astype(np.float32),
        "image_brightness": (mean / 255).astype(np.float32),
        "image_contrast": (np.sqrt(variance) / 255).astype(np.float32),
        "image_entropy_bits": (-(shares * logs).sum(axis=1) + 0.0).astype(np.float32),
        "image_border_ratio": borders.astype(np.float32),
    }


def measure_border(luma: np.ndarray) -> float:
    """Return the share of the area in bars of one shade along the four edges; each edge has its own shade."""
    height, width = luma.shape
    top, bottom = _bars(luma, 1)
    if top == height:
        return 1.0
    left, right = _bars(luma[top : height - bottom], 0)
    return float(1.0 - (height - top - bottom) * (width - left - right) / (height * width))


def _bars(luma: np.ndarray, axis: int) -> tuple[int, int]:
    """Return how many lines are plain from the first on, and from the last back; `axis` is the one along a line."""
    import cv2

    lowest = cv2.reduce(luma, axis, cv2.REDUCE_MIN).reshape(-1)
    highest = cv2.reduce(luma, axis, cv2.REDUCE_MAX).reshape(-1)
    first = _plain_lines(lowest, highest)
    return first, 0 if first == len(lowest) else _plain_lines(lowest[::-1], highest[::-1])


def _plain_lines(lowest: np.ndarray, highest: np.ndarray) -> int:
    # Most pictures have no bar at all: look at the first line before doing arithmetic on all of them.
    if int(highest[0]) - int(lowest[0]) > _BORDER_TOLERANCE:
        return 0
    spread = np.maximum.accumulate(highest).astype(np.int16) - np.minimum.accumulate(lowest)
    return int(np.searchsorted(spread, _BORDER_TOLERANCE, side="right"))
