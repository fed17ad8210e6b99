"""Where a picture has which colours, roughly: what a perceptual hash does not see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.images import pixels
from curate.operator import Annotate, ShardOperator

SIDE = 8
NUM_BYTES = 2 * SIDE * SIDE


@dataclass(frozen=True, kw_only=True)
class ColourLayout(ShardOperator):
    """The picture's colours without its brightness, averaged over 8 x 8 cells (after MPEG-7's colour layout, Kasutani and Yamada 2001).

    image_colour_layout   128 bytes: for each cell, row by row, Cr and Cb, 128 where there is no colour

    near_dedup tells pictures apart by it whose shapes are the same: flags, maps, drawings. About 60 us for 256 x 340 pixels.
    """

    name = "colour_layout"
    version = 1
    reads = ("image",)
    writes = pa.schema([("image_colour_layout", pa.binary(NUM_BYTES))])

    def load(self) -> Annotate:
        return _annotate


def mirror(layouts: np.ndarray) -> np.ndarray:
    """Return rows of layouts turned about, left to right."""
    return np.ascontiguousarray(layouts.reshape(-1, SIDE, SIDE, 2)[:, :, ::-1]).reshape(-1, NUM_BYTES)


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    import cv2

    layouts = np.empty((batch.num_rows, SIDE, SIDE, 2), np.uint8)
    for row, picture in enumerate(pixels(batch.column("image"))):
        assert picture is not None  # `image` is not nullable
        # Averaging and the change of colours are both linear, and 64 cells are quicker to convert than all pixels.
        cells = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        layouts[row] = cv2.cvtColor(cells, cv2.COLOR_RGB2YCrCb)[:, :, 1:]
    kind = pa.binary(NUM_BYTES)
    return {
        "image_colour_layout": pa.FixedSizeBinaryArray.from_buffers(kind, len(layouts), [None, pa.py_buffer(layouts)])
    }
