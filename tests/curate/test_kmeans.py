"""Spherical k-means: repeatable, and nearest centroids that are the nearest."""

from pathlib import Path

import numpy as np
import pytest

from curate.embedding import Embeddings
from curate.executor import Executor
from curate.kmeans import default_num_clusters, nearest, train_centroids
from curate.pool_work import PoolWork
from tests.embedding import clustered


def embeddings(vectors: np.ndarray) -> Embeddings:
    return Embeddings(vectors.astype(np.float16), np.arange(len(vectors)), len(vectors))


def test_centroids_are_unit_vectors_and_repeatable() -> None:
    rows = embeddings(clustered(3000, 10))
    first, again = (train_centroids(rows, 5, iterations=10, seed=3) for _ in range(2))
    assert first.shape == (5, 16)
    assert np.linalg.norm(first, axis=1) == pytest.approx(1.0, abs=1e-4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, train_centroids(rows, 5, iterations=10, seed=4))


def test_nearest_equals_brute_force_in_blocks(tmp_path: Path) -> None:
    vectors = clustered(140_000, 10, 8)
    rows = embeddings(vectors)
    centroids = train_centroids(rows, 12, iterations=3, seed=0)
    with Executor(num_workers=2) as executor:
        executor.start()  # or so few vectors would be searched in this process
        numbers, cosines = nearest(rows, centroids, 2, PoolWork(tmp_path, executor))
    alone = nearest(rows, centroids, 2, PoolWork(tmp_path))
    assert np.array_equal(numbers, alone[0])
    wanted = rows.matrix.astype(np.float32) @ centroids.T
    assert np.take_along_axis(wanted, numbers.astype(np.int64), axis=1) == pytest.approx(cosines, abs=1e-5)
    assert cosines[:, 0] == pytest.approx(wanted.max(axis=1), abs=1e-5)


@pytest.mark.parametrize(("num_vectors", "num_clusters"), [(0, 1), (1, 1), (4999, 1), (1_000_000, 200)])
def test_clusters_have_some_thousand_rows(num_vectors: int, num_clusters: int) -> None:
    assert default_num_clusters(num_vectors) == num_clusters
