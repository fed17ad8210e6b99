"""Lists of numbers, as many as each sample has: one array of all of them, and where each sample's end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from train.uids import Indices

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Ragged:
    """Lists of numbers that lie one behind the other; `take` pads them."""

    values: npt.NDArray[Any]
    ends: Indices  # (n + 1,), beginning with 0
    fill: float  # what stands past the end of a list

    @classmethod
    def of(cls, lists: Sequence[Sequence[float]], dtype: npt.DTypeLike, fill: float) -> "Ragged":
        """Make one of Python lists."""
        ends = np.cumsum([0, *map(len, lists)])
        return cls(np.array([value for one in lists for value in one], dtype=dtype), ends, fill)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @cached_property
    def width(self) -> int:
        """The length of the longest list, at least 1."""
        return max(1, int(np.diff(self.ends).max(initial=0)))

    def take(self, rows: Indices) -> npt.NDArray[Any]:
        """Return the lists of some samples, shape (len(rows), width): as wide for every batch, so that processes agree."""
        first, last = self.ends[rows], self.ends[rows + 1]
        within = np.arange(self.width)
        is_there = within < (last - first)[:, None]
        padded = np.full(is_there.shape, self.fill, dtype=self.values.dtype)
        padded[is_there] = self.values[(first[:, None] + within)[is_there]]
        return padded

    def blocks(self) -> Iterator[tuple[slice, Indices, npt.NDArray[Any]]]:
        """Yield stretches of samples, the lengths of their lists, and the values of these one behind the other."""
        for start in range(0, len(self), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(self)))
            ends = self.ends[rows.start : rows.stop + 1]
            yield rows, np.diff(ends), self.values[ends[0] : ends[-1]]
