"""Which draws of an epoch make up a batch: those of one group, or neighbourhoods. Pure functions, and deterministic."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from train.sampler import Indices, permute_batches

Groups = npt.NDArray[np.int64]  # of each sample: a number from 0 up


def join_small_groups(labels: npt.NDArray[np.int64], is_drawn: npt.NDArray[np.bool_], batch_size: int) -> Groups:
    """Return each sample's group: its label where at least `batch_size` drawn samples have it, otherwise one group of small labels.

    Labels join from the smallest up, until no group is smaller than a batch; groups are numbered from 0. Samples without a label (-1) are
    a label of their own.
    """
    _, numbers = np.unique(labels, return_inverse=True)
    sizes = np.bincount(numbers[is_drawn], minlength=int(numbers.max(initial=-1)) + 1)
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order]
    num_small = int(np.searchsorted(ordered, batch_size))
    joined = int(ordered[:num_small].sum())
    while num_small < len(ordered) and 0 < joined < batch_size:
        joined += int(ordered[num_small])
        num_small += 1
    group_of = np.empty(len(sizes), dtype=np.int64)
    group_of[order[:num_small]] = 0
    group_of[order[num_small:]] = np.arange(len(order) - num_small) + (1 if num_small else 0)
    return np.asarray(group_of[numbers])


class GroupBatcher:
    """Turns a stream of draws into batches of one group each: what does not fill a batch waits for later draws of its group.

    So no draw is lost or repeated, and between any two of its samples at most one batch per group is ahead or behind.
    """

    def __init__(self, groups: Groups, batch_size: int) -> None:
        self._groups = groups
        self._batch_size = batch_size
        self._waiting: dict[int, Indices] = {}

    @property
    def num_waiting(self) -> int:
        """Draws that no batch has shown yet."""
        return sum(len(rows) for rows in self._waiting.values())

    def add(self, draws: Indices, seed: int, epoch: int) -> Indices:
        """Take in the draws of an epoch and return the batches they complete, shape (batches, batch_size), in random order."""
        labels = self._groups[draws]
        order = np.argsort(labels, kind="stable")
        ends = np.flatnonzero(np.diff(labels[order], append=-1)) + 1
        found = []
        for part in np.split(draws[order], ends[:-1]):
            group = int(self._groups[part[0]])
            queue = join_draws(self._waiting.get(group, part[:0]), part, self._batch_size)
            num_whole = len(queue) // self._batch_size * self._batch_size
            found.append(queue[:num_whole].reshape(-1, self._batch_size))
            self._waiting[group] = queue[num_whole:].copy()
        batches = np.concatenate(found)
        return batches[permute_batches(len(batches), seed, epoch)] if len(batches) else batches


def join_draws(waiting: Indices, draws: Indices, batch_size: int) -> Indices:
    """Return the waiting draws and then the new ones, none of the first batch's new ones being a waiting one where others are left."""
    if not len(waiting):
        return draws
    others = np.flatnonzero(~np.isin(draws, waiting))[: batch_size - len(waiting)]
    rest = np.delete(draws, others)
    return np.concatenate([waiting, draws[others], rest])


def neighbour_batches(draws: Indices, neighbours: npt.NDArray[np.int32], size: int, batch_size: int) -> Indices:
    """Return the same draws, shape (batches, batch_size), ordered so that neighbourhoods of up to `size` stand together.

    `draws` are whole batches in random order, `neighbours[i]` the nearest samples of sample i, nearest first. In the order of the draws,
    each one not taken yet takes its nearest neighbours that are not taken either.
    """
    assert len(draws) % batch_size == 0, "an epoch shows whole batches"
    places = _Places(draws)
    taken = np.zeros(len(draws), dtype=bool)
    ordered = np.fromiter(
        (place for block in _blocks(draws, neighbours, size, places, taken) for place in block), np.int64, len(draws)
    )
    return draws[ordered].reshape(-1, batch_size)


class _Places:
    """Where each sample stands among the draws, and how many of those places are left."""

    def __init__(self, draws: Indices) -> None:
        self._order = np.argsort(draws, kind="stable")
        ordered = draws[self._order]
        self._samples, self._starts = np.unique(ordered, return_index=True)
        self._row_of = {int(sample): row for row, sample in enumerate(self._samples)}
        self._ends = np.append(self._starts[1:], len(draws)).tolist()
        self._next = self._starts.tolist()

    def take(self, sample: int, taken: npt.NDArray[np.bool_]) -> int:
        """Return the first place of a sample that is not taken, or -1."""
        row = self._row_of.get(sample, -1)
        if row < 0:
            return -1
        while self._next[row] < self._ends[row]:
            place = int(self._order[self._next[row]])
            if not taken[place]:
                return place
            self._next[row] += 1
        return -1


def _blocks(
    draws: Indices, neighbours: npt.NDArray[np.int32], size: int, places: _Places, taken: npt.NDArray[np.bool_]
) -> Iterator[Sequence[int]]:
    for place, sample in enumerate(draws.tolist()):
        if taken[place]:
            continue
        taken[place] = True
        block = [place]
        for neighbour in neighbours[sample].tolist():
            if len(block) == size:
                break
            found = places.take(neighbour, taken)
            if found >= 0:
                taken[found] = True
                block.append(found)
        yield block
