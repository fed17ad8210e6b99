"""Pictures in grey, for the operators that look at nothing else; made once, right after decoding, however many of them there are."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from curate.operator import IMAGE_LUMA_TYPE


def to_luma(rgb: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return 0.299 R + 0.587 G + 0.114 B of a picture, rounded, as uint8 (height, width); in `out` where it is given."""
    import cv2

    cv2.setNumThreads(1)
    plane: np.ndarray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, dst=out)
    return plane


def to_luma_column(planes_: Sequence[np.ndarray]) -> pa.Array:
    """Return grey pictures as a column of IMAGE_LUMA_TYPE without nulls."""
    pixels = np.concatenate([plane.reshape(-1) for plane in planes_] or [np.empty(0, dtype=np.uint8)])
    return make_column([plane.shape for plane in planes_], pixels, IMAGE_LUMA_TYPE)


def planes(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    """Return the grey pictures of a column without nulls as read-only views of its memory, uint8 (height, width)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [plane for chunk in chunks for plane in _chunk_planes(chunk)]


def make_column(shapes: Sequence[tuple[int, ...]], pixels: np.ndarray, kind: pa.StructType) -> pa.Array:
    """Return pictures of `shapes` that lie one behind the other in `pixels` as a column of `kind`, without copying them."""
    offsets = np.zeros(len(shapes) + 1, dtype=np.int64)
    np.cumsum([math.prod(shape) for shape in shapes], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pixels)]
    data = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(shapes), buffers)
    heights, widths = (pa.array([shape[axis] for shape in shapes], pa.int32()) for axis in (0, 1))
    return pa.StructArray.from_arrays([data, heights, widths], fields=list(kind))


def _chunk_planes(chunk: pa.Array) -> list[np.ndarray]:
    if len(chunk) == 0:
        return []
    # `field` ignores the parent's offset; `flatten` applies it.
    luma, heights, widths = chunk.flatten()
    offsets = np.frombuffer(luma.buffers()[1], dtype=np.int64, count=len(luma) + 1, offset=8 * luma.offset).tolist()
    data = np.frombuffer(luma.buffers()[2] or b"", dtype=np.uint8)
    shapes = zip(heights.to_pylist(), widths.to_pylist(), strict=True)
    return [data[offsets[row] : offsets[row + 1]].reshape(shape) for row, shape in enumerate(shapes)]
