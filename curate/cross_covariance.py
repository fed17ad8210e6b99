"""ClipCov (Joshi et al. 2024, arXiv 2403.12267): pairs that keep the cross-covariance of pictures and captions, picked greedily.

Pairs lie class by class in two matrices on disk. What a pick takes from the others it takes from its own class, so the heap of the
classes' best pairs is the heap of all pairs, and an update sorts one class again.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate.embedding import normalise

if TYPE_CHECKING:
    from curate.pool_work import PoolWork

# Pairs whose similarities are computed by one worker at once, and those of them held at once: 64 MiB.
_TILE = 8_192
_STRIP = 2_048
_ROWS = 16_384

Rectangle = tuple[int, int, int, int]  # first and last picture, first and last caption of an item


@dataclass(frozen=True, eq=False)
class ClassedPairs:
    """Unit embeddings of pairs class by class, in pool order within each; class c is at positions starts[c] to starts[c + 1]."""

    images: np.ndarray  # float16, (pairs, dimensions), mapped from disk
    texts: np.ndarray
    starts: np.ndarray  # int64, one more than there are classes

    @property
    def classes(self) -> np.ndarray:
        """The class at each position."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True, eq=False)
class Gains:
    """By position, float64: what a pair is worth before any is picked, and the two parts that picks take from their class."""

    score: np.ndarray
    cross: np.ndarray  # mean similarity with the captions, and of the caption with the pictures, of the class: 0 to 2
    label: np.ndarray  # cosine of the caption and the label of the class


def sort_by_class(
    images: tuple[np.ndarray, np.ndarray], texts: tuple[np.ndarray, np.ndarray], starts: np.ndarray, folder: Path
) -> ClassedPairs:
    """Copy the rows named beside each matrix into files of `folder`, in the order they are named."""
    copies = []
    for name, (matrix, chosen) in (("images", images), ("texts", texts)):
        shape = (len(chosen), matrix.shape[1])
        copy = np.memmap(folder / f"classed_{name}.bin", np.float16, "w+", shape=shape)
        for start in range(0, len(chosen), _ROWS):
            copy[start : start + _ROWS] = matrix[chosen[start : start + _ROWS]]
        copies.append(copy)
    return ClassedPairs(copies[0], copies[1], starts)


def measure_gains(pairs: ClassedPairs, labels: np.ndarray, work: "PoolWork") -> Gains:
    """Return cross + 2 easiness + label / 2 - centrality of every pair; `labels` are unit rows, one per class.

    easiness     cosine of picture and caption
    centrality   cosine of the caption with the mean picture, plus that of the picture with the mean caption of the class
    """
    classes = pairs.classes
    centres = [_centres(matrix, pairs.starts) for matrix in (pairs.images, pairs.texts)]
    cross = _cross(pairs, work) / np.diff(pairs.starts)[classes]
    rest, label = np.empty(len(classes)), np.empty(len(classes))
    for start in range(0, len(classes), _ROWS):
        part = slice(start, start + _ROWS)
        images, texts = (np.asarray(matrix[part], np.float32) for matrix in (pairs.images, pairs.texts))
        own = classes[part]
        label[part] = _dots(texts, labels[own])
        rest[part] = 2 * _dots(images, texts) - _dots(texts, centres[0][own]) - _dots(images, centres[1][own])
    return Gains(cross + rest + label / 2, cross, label)


def pick(pairs: ClassedPairs, gains: Gains, rows: np.ndarray, size: int, update_every: int) -> np.ndarray:
    """Return the positions of `size` pairs in the order they are picked: always the pair with the highest score, the first of `rows` of equals.

    After every `update_every` picks from a class its scores are lowered: each by its similarity with the pairs picked since, both ways,
    and all by the cross of every pair picked so far and half the label similarity of those picked since; over the class's size.
    """
    queues = [_Queue(pairs, gains, number) for number in range(len(pairs.starts) - 1)]
    heap = [(*queue.best(rows), number) for number, queue in enumerate(queues) if not queue.is_empty]
    heapq.heapify(heap)
    picked = np.empty(min(size, len(rows)), np.int64)
    for rank in range(len(picked)):
        number = heap[0][2]
        queue = queues[number]
        picked[rank] = queue.take()
        if queue.num_taken % update_every == 0:
            queue.lower()
        if queue.is_empty:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (*queue.best(rows), number))
    return picked


class _Queue:
    """The pairs of one class that are left, best first."""

    def __init__(self, pairs: ClassedPairs, gains: Gains, number: int) -> None:
        start, stop = int(pairs.starts[number]), int(pairs.starts[number + 1])
        self._start = start
        self._images, self._texts = pairs.images[start:stop], pairs.texts[start:stop]
        self._score = gains.score[start:stop].copy()
        self._cross, self._label = gains.cross[start:stop], gains.label[start:stop]
        self._is_left = np.ones(stop - start, bool)
        self._taken_since: list[int] = []
        self._taken_cross = 0.0
        self.num_taken = 0
        self._sort()

    @property
    def is_empty(self) -> bool:
        return self._next == len(self._order)

    def best(self, rows: np.ndarray) -> tuple[float, int]:
        """Return what the heap sorts by: the score, negated, and the pool's row."""
        member = int(self._order[self._next])
        return -float(self._score[member]), int(rows[self._start + member])

    def take(self) -> int:
        """Take the best pair and return its position."""
        member = int(self._order[self._next])
        self._next += 1
        self.num_taken += 1
        self._is_left[member] = False
        self._taken_since.append(member)
        return self._start + member

    def lower(self) -> None:
        """Lower the scores by what was taken, and sort again."""
        size = len(self._score)
        taken = np.array(self._taken_since)
        self._taken_since = []
        self._taken_cross += float(self._cross[taken].sum())
        self._score -= (self._taken_cross + float(self._label[taken].sum()) / 2) / size
        images, texts = (np.asarray(matrix[taken], np.float32) for matrix in (self._images, self._texts))
        for start in range(0, size, _ROWS):
            part = slice(start, start + _ROWS)
            for mine, other in ((self._images, texts), (self._texts, images)):
                self._score[part] -= _positive(np.asarray(mine[part], np.float32), other).sum(1, np.float64) / size
        self._sort()

    def _sort(self) -> None:
        left = np.flatnonzero(self._is_left)
        # Stable: of equal ones the first of the pool.
        self._order = left[np.argsort(-self._score[left], kind="stable")]
        self._next = 0


def _cross(pairs: ClassedPairs, work: "PoolWork") -> np.ndarray:
    """Return for each pair the sum of its similarities with the captions and of its caption's with the pictures of the class."""
    plan = list(_plan(pairs.starts.tolist()))
    items = (
        (np.asarray(pairs.images[images]), np.asarray(pairs.texts[texts]), rectangles)
        for images, texts, rectangles in plan
    )
    sums = np.zeros(int(pairs.starts[-1]))
    for (images, texts, _), (by_image, by_text) in zip(plan, work.map(_sum_item, items), strict=True):
        sums[images] += by_image
        sums[texts] += by_text
    return sums


def _plan(starts: Sequence[int]) -> Iterator[tuple[slice, slice, list[Rectangle]]]:
    """Yield what workers are given: small classes several together, large ones in tiles."""
    first, rectangles = 0, list[Rectangle]()
    for start, stop in pairwise(starts):
        if rectangles and (stop - first > _TILE):
            yield slice(first, start), slice(first, start), rectangles
            rectangles = []
        if not rectangles:
            first = start
        if stop - start <= _TILE:
            rectangles.append((start - first, stop - first, start - first, stop - first))
            continue
        tiles = [slice(at, min(at + _TILE, stop)) for at in range(start, stop, _TILE)]
        for images in tiles:
            for texts in tiles:
                yield images, texts, [(0, images.stop - images.start, 0, texts.stop - texts.start)]
    if rectangles:
        yield slice(first, starts[-1]), slice(first, starts[-1]), rectangles


def _sum_item(item: tuple[np.ndarray, np.ndarray, list[Rectangle]]) -> tuple[np.ndarray, np.ndarray]:
    images, texts, rectangles = item
    by_image, by_text = np.zeros(len(images)), np.zeros(len(texts))
    for top, bottom, left, right in rectangles:
        columns = texts[left:right].astype(np.float32)
        for start in range(top, bottom, _STRIP):
            stop = min(start + _STRIP, bottom)
            similarity = _positive(images[start:stop].astype(np.float32), columns)
            by_image[start:stop] += similarity.sum(1, np.float64)
            by_text[left:right] += similarity.sum(0, np.float64)
    return by_image, by_text


def _positive(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return cosines, negative ones as 0."""
    cosines = left @ right.T
    return np.asarray(np.maximum(cosines, 0, out=cosines))


def _dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", left, right, dtype=np.float64))


def _centres(matrix: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the direction of the mean of every class; zeros for an empty one."""
    sums = np.zeros((len(starts) - 1, matrix.shape[1]))
    for number, (start, stop) in enumerate(pairwise(starts.tolist())):
        for at in range(start, stop, _ROWS):
            sums[number] += np.asarray(matrix[at : min(at + _ROWS, stop)]).sum(0, np.float64)
    return normalise(sums)
