"""Text in pictures, by RapidOCR: PP-OCR's detector and recogniser, whose weights lie in the wheel (extra `ocr`)."""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.errors import InputError

# The detector halves its input five times.
_STRIDE = 32
# Boxes in which the detector believes less are mostly edges.
_BOX_SCORE = 0.5


@dataclass(frozen=True, slots=True)
class Spotted:
    """A line of text: what it says, how sure the recogniser is (0 to 1), and its four corners in pixels (4 x 2, clockwise from top left)."""

    text: str
    confidence: float
    corners: np.ndarray


class TextSpotter:
    """A loaded engine; one picture at a time, so that a result never depends on its neighbours."""

    def __init__(self, max_side: int, max_strings: int) -> None:
        self._engine: Any = _load_engine(max_side)
        self._max_strings = max_strings
        # The engine keeps what it works on in its attributes.
        self._lock = threading.Lock()

    def spot(self, rgb: np.ndarray) -> list[Spotted]:
        """Return the lines of text of a picture (height x width x 3), the largest `max_strings` of them, in reading order."""
        from rapidocr.main import RapidOCRError

        picture = np.ascontiguousarray(rgb[:, :, ::-1])  # the engine wants blue first
        with self._lock:
            try:
                crops, found = self._engine.detect_and_crop(picture, {})
            except RapidOCRError:  # its way to say that there is no text
                return []
            chosen = _largest(found.boxes, self._max_strings)
            read = self._engine.recognize_txt([crops[index] for index in chosen])
        texts, scores = read.txts or (), read.scores or ()
        return [
            Spotted(text.strip(), min(float(score), 1.0), np.asarray(found.boxes[index], np.float32))
            for index, text, score in zip(chosen, texts, scores, strict=True)
            if text.strip()
        ]


def _largest(boxes: np.ndarray, count: int) -> list[int]:
    """Return the numbers of the `count` largest boxes in their own order."""
    sides = np.ptp(boxes, axis=1).astype(np.float64)
    order = np.argsort(-(sides[:, 0] * sides[:, 1]), kind="stable")[:count]
    return sorted(order.tolist())


@functools.lru_cache(maxsize=4)
def _load_engine(max_side: int) -> Any:
    try:
        import onnxruntime
        from rapidocr import RapidOCR
    except ImportError as error:
        raise InputError("text_spotting needs an OCR engine; run `pip install 'winnow[ocr]'`") from error
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,  # upside-down text is not worth a model on every line
            "Global.use_preprocess_img": False,
            "Global.use_vertical_padding": False,
            "Det.limit_type": "max",  # never enlarge: time grows with the area, and small pictures are read as they are
            "Det.limit_side_len": max(max_side, _STRIDE),
            "Det.box_thresh": _BOX_SCORE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "EngineConfig.onnxruntime.use_cuda": "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
        }
    )
