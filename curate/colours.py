"""Comparing colour layouts: which pictures of the same shapes have the same colours as well."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.operators.colour_layout import NUM_BYTES, mirror

_BLOCK = 65_536
_NO_COLOUR = 128
_MOST_GAIN = 1.25


class Layouts:
    """The colour layouts of a pool's rows, on disk; rows without one are zeros."""

    def __init__(self, path: Path, columns: Iterator[pa.Array]) -> None:
        """Copy the columns, which come in pool order, to `path`."""
        num_rows = 0
        with path.open("wb") as file:
            for column in columns:
                block = np.zeros((len(column), NUM_BYTES), np.uint8)
                there = column.is_valid().to_numpy(zero_copy_only=False)
                block[there] = np.frombuffer(b"".join(column.drop_null().to_pylist()), np.uint8).reshape(-1, NUM_BYTES)
                file.write(block.tobytes())
                num_rows += len(column)
        shape = (num_rows, NUM_BYTES)
        self._matrix = np.memmap(path, np.uint8, "r", shape=shape) if num_rows else np.empty(shape, np.uint8)

    def distance(self, left: np.ndarray, right: np.ndarray, is_mirrored: np.ndarray | None = None) -> np.ndarray:
        """Return the difference of the colours of pairs of rows, 0 to 255; the left one turned about where mirrored."""
        found = np.empty(len(left), np.float32)
        for start in range(0, len(left), _BLOCK):
            part = slice(start, start + _BLOCK)
            first = self._matrix[left[part]]
            if is_mirrored is not None:
                turned = is_mirrored[part]
                first[turned] = mirror(first[turned])
            found[part] = colour_distance(first, self._matrix[right[part]])
        return found

    def leaders(self, rows: np.ndarray, max_distance: float) -> np.ndarray:
        """Return for each of `rows`, most preferred first, the row that leads it: the first that is no further from it."""
        colours = self._matrix[rows]
        found = np.full(len(rows), -1)
        while (left := np.flatnonzero(found < 0)).size:
            distances = colour_distance(colours[left], colours[left[:1]])
            found[left[distances <= max_distance]] = rows[left[0]]
            found[left[0]] = rows[left[0]]
        return found


def colour_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the mean difference of the cells' colours for rows of layouts, once the stronger colours are as strong as the weaker.

    Brightening a picture makes its colours stronger by the same factor, so up to `_MOST_GAIN` of it does not count.
    """
    left, right = first.astype(np.float32) - _NO_COLOUR, second.astype(np.float32) - _NO_COLOUR
    left_norm, right_norm = (np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right))
    strongest = np.maximum(np.maximum(left_norm, right_norm), 1e-6)
    gain = np.maximum(np.minimum(left_norm, right_norm) / strongest, 1 / _MOST_GAIN)
    difference = np.where(left_norm > right_norm, gain, 1) * left - np.where(right_norm > left_norm, gain, 1) * right
    return np.asarray(np.abs(difference).mean(axis=1))
