"""Blurs boxes of a picture beyond recognition, as DataComp's and img2dataset's face blurring does."""

from collections.abc import Sequence

import numpy as np

# A box is taken this much wider on each side: detectors cut hair and chins.
_MARGIN = 0.15
# What is left of a box: so many cells along its longer side, blurred into each other.
_CELLS = 6


def blur_boxes(rgb: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Return a copy of a picture (height x width x 3) with its boxes (left, top, right, bottom as ratios) blurred.

    The edge is soft: within the margin the blurred picture fades into the sharp one, inside the box nothing sharp is left.
    """
    import cv2

    height, width = rgb.shape[:2]
    blurred = rgb.copy()
    for left, top, right, bottom in boxes:
        x_margin, y_margin = _MARGIN * (right - left) * width, _MARGIN * (bottom - top) * height
        x0, x1 = max(0, int(left * width - x_margin)), min(width, int(np.ceil(right * width + x_margin)))
        y0, y1 = max(0, int(top * height - y_margin)), min(height, int(np.ceil(bottom * height + y_margin)))
        if x1 <= x0 or y1 <= y0:
            continue
        region = blurred[y0:y1, x0:x1].astype(np.float32)
        scale = _CELLS / max(region.shape[:2])
        cells = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
        coarse = cv2.resize(cv2.resize(region, cells, interpolation=cv2.INTER_AREA), (x1 - x0, y1 - y0))
        share = np.minimum.outer(
            _fade(y0, y1, top * height, bottom * height, y_margin), _fade(x0, x1, left * width, right * width, x_margin)
        )[:, :, None]
        mixed = region + (coarse.reshape(region.shape) - region) * share
        blurred[y0:y1, x0:x1] = np.round(mixed).clip(0, 255).astype(np.uint8)
    return blurred


def _fade(start: int, stop: int, first: float, last: float, margin: float) -> np.ndarray:
    """Return 1 for pixels within `first` to `last`, falling to 0 over the margin."""
    places = np.arange(start, stop) + 0.5
    outside = np.maximum(np.maximum(first - places, places - last), 0)
    return np.asarray(np.clip(1 - outside / max(margin, 1e-6), 0, 1), np.float32)
