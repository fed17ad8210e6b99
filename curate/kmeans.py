"""Spherical k-means by faiss, and the nearest centroids of many vectors."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from curate.embedding import Embeddings
from curate.pool_work import PoolWork

# At most this many points per centroid are learnt from, as faiss does by default; more change centroids little.
POINTS_PER_CENTROID = 256
_MEAN_CLUSTER = 5000
# Of one core, for a vector, a centroid and a dimension; with little more for reading them.
_PRODUCT_SECONDS = 1e-10


def default_num_clusters(num_vectors: int) -> int:
    """Return a number of clusters with about 5,000 vectors each, in between what SemDeDup (8,800) and smaller pools take."""
    return max(1, round(num_vectors / _MEAN_CLUSTER))


def train_centroids(embeddings: Embeddings, num_clusters: int, *, iterations: int, seed: int) -> np.ndarray:
    """Return the unit centroids (clusters x dimensions, float32) of spherical k-means.

    Learns from a sample where there are more than `POINTS_PER_CENTROID` vectors per cluster, so that memory is bounded by the number of
    clusters. The same vectors, seed and number of clusters give the same centroids.
    """
    import faiss

    num_clusters = max(1, min(num_clusters, len(embeddings.matrix)))
    if not len(embeddings.matrix):
        return np.empty((0, embeddings.matrix.shape[1]), np.float32)
    chosen = _sample(len(embeddings.matrix), num_clusters * POINTS_PER_CENTROID, seed)
    points = np.ascontiguousarray(embeddings.matrix[chosen], np.float32)
    kmeans = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=iterations,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    return np.asarray(kmeans.centroids)


def nearest(
    embeddings: Embeddings, centroids: np.ndarray, num_nearest: int, work: PoolWork
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each vector its nearest centroids, most alike first (int32), and their cosines (float32)."""
    blocks: Iterable[np.ndarray] = embeddings.blocks()
    core_seconds = embeddings.matrix.size * float(len(centroids)) * _PRODUCT_SECONDS
    found: Iterator[tuple[np.ndarray, np.ndarray]] = work.map(
        functools.partial(nearest_of_block, centroids, num_nearest), blocks, core_seconds=core_seconds
    )
    parts = list(found)
    if not parts:
        return np.empty((0, num_nearest), np.int32), np.empty((0, num_nearest), np.float32)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def nearest_of_block(centroids: np.ndarray, num_nearest: int, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers and cosines of the nearest centroids of a block of vectors; ties go to the lower number."""
    import faiss

    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids, np.float32))
    cosines, numbers = index.search(np.ascontiguousarray(block, np.float32), num_nearest)
    return numbers.astype(np.int32), cosines


def _sample(num_vectors: int, wanted: int, seed: int) -> np.ndarray:
    if num_vectors <= wanted:
        return np.arange(num_vectors)
    return np.sort(np.random.default_rng(seed).choice(num_vectors, wanted, replace=False))
