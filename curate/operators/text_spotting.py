"""Text in the picture, and how much of the caption it repeats (the T of CAT)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.images import pixels
from curate.models.ocr import Spotted, TextSpotter
from curate.operator import Annotate, Resources, ShardOperator
from curate.text_overlap import letters, longest_common_run, seen_word_ratio
from schemas.errors import InputError

# Less than this is noise, and a lone character is more often a shape: half of the emoji were "read" as one.
_MIN_CONFIDENCE, _MIN_CHARACTERS = 0.5, 2
# A whole drawing "read" as two or three letters, at up to 0.83: letters that take a larger share of the picture must be this sure.
_MAX_LETTER_AREA, _MIN_LARGE_CONFIDENCE = 0.04, 0.9
# The share of the area is counted on a raster of at most this side.
_RASTER_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class TextSpotting(ShardOperator):
    """Text in the picture by OCR, and how much of the caption it repeats (DiHT, arXiv 2301.02280; T-MARS, arXiv 2307.03132).

    text_strings           lines of text with at least two letters or digits, in reading order; letters that take more than 4 % of the
                           picture each only where the recogniser is sure of 0.9: drawings are "read" as such
    text_confidences       how sure the recogniser is of each, 0.5 to 1
    text_boxes             left, top, right and bottom of each as ratios of width and height, 0 to 1
    text_corners           x and y of its four corners likewise, clockwise from the top left: a slanted line fills less than its box
    text_area_ratio        area that the text covers / area of the picture, 0 to 1
    text_overlap_num_chars the longest run of letters and digits that the caption shares with a line of confidence >= `min_confidence`
    text_matches_caption   CAT's T: that run has at least `window` characters; CAT drops these
    text_caption_ratio     share of the caption's words (three characters and more) that can be read with that confidence; null without any.
                           Inside a longer word of the picture only words of five characters count, or those that make it up

    Case, accents and signs do not count; a run may span words of the caption, not lines of text. The engine is RapidOCR with PP-OCR's weights,
    which lie in its wheel (extra `ocr`). On one CPU core a picture of 128 px without text takes 8 ms, one of 256 px 26 ms, and each line
    27 ms more. Pictures are never enlarged, but reduced to `max_side`.
    """

    name = "text_spotting"
    version = 3
    reads = ("image", "alt_text")
    nullable = ("alt_text",)
    resources = Resources(model=True, batch_size=32)
    writes = pa.schema([
        ("text_strings", pa.list_(pa.string())),
        ("text_confidences", pa.list_(pa.float32())),
        ("text_boxes", pa.list_(pa.list_(pa.float32()))),
        ("text_corners", pa.list_(pa.list_(pa.float32()))),
        ("text_area_ratio", pa.float32()),
        ("text_overlap_num_chars", pa.int32()),
        ("text_matches_caption", pa.bool_()),
        ("text_caption_ratio", pa.float32()),
    ])

    min_confidence: float = 0.8  # of a line that is compared with the caption, 0 to 1
    window: int = 5  # characters in a row that make a match
    max_side: int = 640  # pixels; longer pictures are reduced before text is looked for
    max_strings: int = 50  # lines read per picture, the largest first

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise InputError(f"text_spotting min_confidence is {self.min_confidence}; it must be 0 to 1")
        for name in ("window", "max_side", "max_strings"):
            if getattr(self, name) < 1:
                raise InputError(f"text_spotting {name} is {getattr(self, name)}; it must be at least 1")

    def load(self) -> Annotate:
        spotter = TextSpotter(self.max_side, self.max_strings)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            captions = batch.column("alt_text").to_pylist()
            rows = []
            for picture, caption in zip(pixels(batch.column("image")), captions, strict=True):
                assert picture is not None  # `image` is not nullable
                rows.append(self._describe(spotter.spot(picture), picture.shape[:2], caption or ""))
            return {name: [row[name] for row in rows] for name in self.writes.names}

        return annotate

    def _describe(self, spotted: list[Spotted], size: tuple[int, ...], caption: str) -> dict[str, Any]:
        height, width = size
        lines = [line for line in spotted if _is_text(line, height * width)]
        confident = [line.text for line in lines if line.confidence >= self.min_confidence]
        overlap = longest_common_run(confident, caption)
        places = [np.clip(line.corners / np.array([width, height]), 0, 1) for line in lines]
        return {
            "text_strings": [line.text for line in lines],
            "text_confidences": [line.confidence for line in lines],
            "text_boxes": [[*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()] for corners in places],
            "text_corners": [corners.ravel().tolist() for corners in places],
            "text_area_ratio": _area_ratio(lines, height, width),
            "text_overlap_num_chars": overlap,
            "text_matches_caption": overlap >= self.window,
            "text_caption_ratio": seen_word_ratio(confident, caption),
        }


def _is_text(line: Spotted, num_pixels: int) -> bool:
    # A sign for a Roman number is one character, though it says several letters: two strokes are "read" as such.
    num_letters = min(len(letters(line.text)), len(line.text))
    if line.confidence < _MIN_CONFIDENCE or num_letters < _MIN_CHARACTERS:
        return False
    is_large = _polygon_area(line.corners) > _MAX_LETTER_AREA * num_letters * num_pixels
    return not is_large or line.confidence >= _MIN_LARGE_CONFIDENCE


def _polygon_area(corners: np.ndarray) -> float:
    x, y = corners.astype(np.float64).T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _area_ratio(lines: list[Spotted], height: int, width: int) -> float:
    if not lines:
        return 0.0
    import cv2

    scale = min(1.0, _RASTER_SIDE / max(height, width))
    raster = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.uint8)
    for line in lines:  # one by one: where two of one call overlap they cancel each other
        cv2.fillPoly(raster, [np.round(line.corners * scale).astype(np.int32)], 1)
    return float(raster.mean())
