"""Pictures that show the same, by embedding: SemDeDup."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curate.embedding import Embeddings, read_embeddings, take_rows, write_columns
from curate.kmeans import default_num_clusters, nearest, train_centroids
from curate.operator import PoolOperator
from curate.pool_rows import draw_sql, stream
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_ORDERS = ("hard", "random", "easy")
# The first of a cluster has nothing before it.
NOTHING_BEFORE = -1.0
# Vectors sent to a worker at once, in whole clusters, and rows and columns of similarities held at once.
_ITEM_ROWS = 32_768
_TILE = 2_048
# Of one core, for the square of a cluster's size and a dimension, measured; each pair is compared once.
_COMPARE_SECONDS = 2.5e-11


@dataclass(frozen=True, kw_only=True)
class SemanticDedup(PoolOperator):
    """Semantic duplicates by SemDeDup (arXiv 2303.09540): embeddings compared within clusters of spherical k-means.

    semantic_dedup_cluster          the cluster, 0 and up
    semantic_dedup_max_similarity   the largest cosine with a row that comes before this one in its cluster, removed or not; -1 for the
                                    first. Another threshold needs no other run: `semantic_dedup_max_similarity <= 1 - 0.05`
    is_semantic_duplicate           that cosine is above 1 - `eps`, or above what leaves `target_ratio` of the rows

    Within a cluster rows come in the order of `keep`: `hard`, those least like the centroid first (the paper's choice), `easy`, or
    `random` by seed and uid; equal ones as in the pool. As in the paper, chains collapse into their first row, and pairs that two
    clusters part are missed. Every pair of a cluster is compared, whatever its size. 440 million LAION rows keep 0.72 at eps 0.03, 0.63
    at 0.07. Reads `image_embedding` of clip_embedding.
    """

    name = "semantic_dedup"
    version = 1
    reads = ("image_embedding", "status", "error_message")
    writes = pa.schema([
        ("semantic_dedup_cluster", pa.int32()),
        ("semantic_dedup_max_similarity", pa.float32()),
        ("is_semantic_duplicate", pa.bool_()),
    ])

    eps: float = 0.05  # cosines above 1 - eps are duplicates
    target_ratio: float = 0.0  # share of the rows to keep, in place of eps; 0: as eps says
    num_clusters: int = 0  # 0: one for every 5,000 embeddings
    keep: str = "hard"  # hard, easy or random
    iterations: int = 100  # of k-means
    seed: int = 1234  # of k-means, and of the random order

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 2:
            raise InputError(f"semantic_dedup eps is {self.eps}; it must be 0 to 2")
        if not 0 <= self.target_ratio <= 1:
            raise InputError(f"semantic_dedup target_ratio is {self.target_ratio}; it must be 0 to 1")
        if self.keep not in _ORDERS:
            raise InputError(f"semantic_dedup keep is {self.keep!r}; it must be one of {', '.join(_ORDERS)}")
        if self.num_clusters < 0 or self.iterations < 1:
            raise InputError("semantic_dedup: num_clusters must be 0 or more, iterations at least 1")

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        embeddings = read_embeddings(pool, work.folder)
        wanted = self.num_clusters or default_num_clusters(len(embeddings.matrix))
        centroids = train_centroids(embeddings, wanted, iterations=self.iterations, seed=self.seed)
        numbers, cosines = nearest(embeddings, centroids, 1, work)
        clusters = numbers[:, 0]
        order = np.lexsort((np.arange(len(clusters)), self._preference(pool, embeddings, cosines[:, 0]), clusters))
        similarity = np.empty(len(clusters), np.float32)
        similarity[order] = compare_clusters(embeddings, clusters, order, work)
        columns: dict[str, np.ndarray | pa.Array] = {
            "semantic_dedup_cluster": embeddings.spread(clusters, 0),
            "semantic_dedup_max_similarity": embeddings.spread(similarity, 0),
            "is_semantic_duplicate": embeddings.spread(similarity > self._threshold(similarity), False),
        }
        yield from write_columns(pool, self.writes, columns, embeddings.spread(np.ones(len(clusters), bool), False))

    def _preference(self, pool: "DuckDBPyRelation", embeddings: Embeddings, cosines: np.ndarray) -> np.ndarray:
        """Return what rows of a cluster are sorted by, lowest first."""
        if self.keep == "random":
            draws = [batch.column(0).to_numpy() for batch in stream(pool, f"{draw_sql(self.seed)} AS draw")]
            return np.asarray(np.concatenate([np.empty(0, np.uint64), *draws])[embeddings.rows])
        return cosines if self.keep == "hard" else -cosines

    def _threshold(self, similarity: np.ndarray) -> float:
        if not self.target_ratio or not len(similarity):
            return 1 - self.eps
        # Every similarity is known, so the threshold that leaves so many is exact but for ties.
        kept = max(1, round(self.target_ratio * len(similarity)))
        return float(np.partition(similarity, kept - 1)[kept - 1])


def compare_clusters(embeddings: Embeddings, clusters: np.ndarray, order: np.ndarray, work: "PoolWork") -> np.ndarray:
    """Return, in the order of `order`, the largest cosine of each vector with those before it in its cluster."""
    sizes = np.bincount(clusters)
    ends = np.cumsum(sizes)
    items = _items(embeddings, order, sizes[sizes > 0], ends[sizes > 0])
    core_seconds = float(np.square(sizes, dtype=np.float64).sum()) * embeddings.matrix.shape[1] * _COMPARE_SECONDS
    found = work.map(_compare_item, items, core_seconds=core_seconds)
    return np.concatenate([np.empty(0, np.float32), *found])


def _items(
    embeddings: Embeddings, order: np.ndarray, sizes: np.ndarray, ends: np.ndarray
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yield whole clusters, small ones several together: their vectors one after the other, and their sizes."""
    first = 0
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and ends[last] - (ends[first] - sizes[first]) <= _ITEM_ROWS:
            last += 1
        chosen = order[ends[first] - sizes[first] : ends[last - 1]]
        yield take_rows(embeddings.matrix, chosen), sizes[first:last].tolist()
        first = last


def _compare_item(item: tuple[np.ndarray, list[int]]) -> np.ndarray:
    vectors, sizes = item
    parts, start = [], 0
    for size in sizes:
        parts.append(max_similarity_before(vectors[start : start + size].astype(np.float32)))
        start += size
    return np.concatenate(parts)


def max_similarity_before(vectors: np.ndarray) -> np.ndarray:
    """Return the largest cosine of each unit vector with any above it, -1 for the first; memory does not grow with the number."""
    found = np.full(len(vectors), NOTHING_BEFORE, np.float32)
    for start in range(0, len(vectors), _TILE):
        rows = vectors[start : start + _TILE]
        best = found[start : start + _TILE]
        for other in range(0, start + 1, _TILE):
            cosines = rows @ vectors[other : other + _TILE].T
            if other == start:
                cosines[np.triu_indices(len(rows))] = NOTHING_BEFORE
            np.maximum(best, cosines.max(axis=1), out=best)
    return np.clip(found, NOTHING_BEFORE, 1)
