"""Comparing colour layouts: which pictures of the same shapes have the same colours as well."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.operators.colour_layout import NUM_BYTES, mirror

_BLOCK = 65_536
# Pairs whose layouts are in memory together: 128 MiB at most.
_PAIRS_IN_MEMORY = 1 << 19
# Rows read at once where many are asked for; where it is fewer than one in `_SPARSE`, each is read by itself.
_READ_ROWS = 1 << 18
_SPARSE = 1000
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
        self._path = path
        self._num_rows = num_rows

    def distance(self, left: np.ndarray, right: np.ndarray, is_mirrored: np.ndarray | None = None) -> np.ndarray:
        """Return the difference of the colours of pairs of rows, 0 to 255; the left one turned about where mirrored."""
        found = np.empty(len(left), np.float32)
        for begin in range(0, len(left), _PAIRS_IN_MEMORY):
            end = min(len(left), begin + _PAIRS_IN_MEMORY)
            rows, places = np.unique(np.concatenate([left[begin:end], right[begin:end]]), return_inverse=True)
            colours = self._read(rows)
            for start in range(begin, end, _BLOCK):
                stop = min(end, start + _BLOCK)
                first = colours[places[start - begin : stop - begin]]
                if is_mirrored is not None:
                    turned = is_mirrored[start:stop]
                    first[turned] = mirror(first[turned])
                second = colours[places[end - begin + start - begin : end - begin + stop - begin]]
                found[start:stop] = colour_distance(first, second)
        return found

    def leaders(self, rows: np.ndarray, max_distance: float) -> np.ndarray:
        """Return for each of `rows`, most preferred first, the row that leads it: the first that is no further from it."""
        order = np.argsort(rows)
        colours = np.empty((len(rows), NUM_BYTES), np.uint8)
        colours[order] = self._read(rows[order])
        found = np.full(len(rows), -1)
        while (left := np.flatnonzero(found < 0)).size:
            distances = colour_distance(colours[left], colours[left[:1]])
            found[left[distances <= max_distance]] = rows[left[0]]
            found[left[0]] = rows[left[0]]
        return found

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Return the layouts of rising rows; read and not mapped, for of a mapped file every page that was touched counts as memory."""
        found = np.empty((len(rows), NUM_BYTES), np.uint8)
        if len(rows) * _SPARSE < self._num_rows:
            with self._path.open("rb", buffering=0) as file:
                for place, row in enumerate(rows.tolist()):
                    found[place] = np.frombuffer(os.pread(file.fileno(), NUM_BYTES, row * NUM_BYTES), np.uint8)
            return found
        edges = [*range(0, self._num_rows, _READ_ROWS), self._num_rows]
        cuts = np.searchsorted(rows, edges)
        for start, stop, first, last in zip(edges, edges[1:], cuts, cuts[1:], strict=False):
            if first < last:
                block = np.fromfile(self._path, np.uint8, (stop - start) * NUM_BYTES, offset=start * NUM_BYTES)
                found[first:last] = block.reshape(-1, NUM_BYTES)[rows[first:last] - start]
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
