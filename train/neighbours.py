"""The nearest samples of every sample by their stored embeddings: the hard negatives that batches of neighbourhoods are made of."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.checkpoint import write_array
from train.distributed import World

NEIGHBOURS_FILE = "neighbours.npy"

# Up to here every pair is compared; beyond, those in the nearest cells of a coarse quantizer.
_MOST_EXACT = 20_000
_PROBED_CELLS = 16
_POINTS_PER_CELL = 64
_BLOCK = 1 << 14


def find_neighbours(vectors: npt.NDArray[np.floating], count: int, *, seed: int) -> npt.NDArray[np.int32]:
    """Return the `count` nearest other samples of each sample by cosine, nearest first, shape (n, count); -1 where there are fewer.

    Exact up to 20,000 samples; beyond that an inverted file with about 4 sqrt(n) cells, of which 16 are searched. Needs the vectors in
    memory as float32.
    """
    import faiss

    units = np.array(vectors, dtype=np.float32, order="C")  # a copy: the given ones may be a file
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    index: Any = faiss.IndexFlatIP(units.shape[1])
    if len(units) > _MOST_EXACT:
        num_cells = round(4 * len(units) ** 0.5)
        index = faiss.IndexIVFFlat(index, units.shape[1], num_cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.cp.max_points_per_centroid = _POINTS_PER_CELL
        index.nprobe = _PROBED_CELLS
        index.train(units)
    index.add(units)
    found = np.full((len(units), count), -1, dtype=np.int32)
    for start in range(0, len(units), _BLOCK):
        block = index.search(units[start : start + _BLOCK], count + 1)[1]
        own = np.arange(start, start + len(block))[:, None]
        # A sample is its own nearest, except among exact copies: drop it wherever it stands, else the farthest.
        order = np.argsort(block == own, axis=1, kind="stable")[:, :count]
        found[start : start + len(block)] = np.take_along_axis(block, order, axis=1)
    return found


def share_neighbours(
    run: Path, vectors: npt.NDArray[np.floating], count: int, *, seed: int, world: World
) -> npt.NDArray[np.int32]:
    """Return the neighbours that the run keeps in a file, found by the first process: other machines might round otherwise."""
    path = run / NEIGHBOURS_FILE
    if world.is_main and not path.exists():
        write_array(path, find_neighbours(vectors, count, seed=seed))
    world.wait()
    found: npt.NDArray[np.int32] = np.load(path, mmap_mode="r").view(np.ndarray)
    return found
