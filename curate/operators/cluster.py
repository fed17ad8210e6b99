"""Clusters of pictures by their embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.embedding import read_embeddings, read_vectors, write_columns
from curate.fingerprint import file_identity
from curate.kmeans import default_num_clusters, nearest, nearest_of_block, train_centroids
from curate.operator import PoolOperator
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork


@dataclass(frozen=True, kw_only=True)
class Cluster(PoolOperator):
    """Clusters by spherical k-means over embeddings (faiss), and DataComp's rule of image-based filtering (arXiv 2304.14108).

    cluster_id           the nearest centroid, 0 and up
    cluster_similarity   cosine with it, -1 to 1
    cluster_ids          the `num_nearest` nearest centroids, most alike first
    cluster_size         rows of the cluster, 1 and up
    cluster_has_target   whether the centroid is also the nearest one of a vector in `targets`; null without targets. DataComp keeps
                         these, with 100,000 clusters, 20 iterations and the embeddings of ImageNet-1k as targets

    Reads `image_embedding` of clip_embedding; bind it to cluster by anything else. `targets` is a .npy, .npz or .parquet file of
    embeddings by the same model. Learns from at most 256 vectors per cluster, then assigns every row, sharing blocks among workers.
    """

    name = "cluster"
    version = 1
    reads = ("image_embedding", "status", "error_message")
    writes = pa.schema([
        ("cluster_id", pa.int32()),
        ("cluster_similarity", pa.float32()),
        ("cluster_ids", pa.list_(pa.int32())),
        ("cluster_size", pa.int64()),
        ("cluster_has_target", pa.bool_()),
    ])

    num_clusters: int = 0  # 0: one for every 5,000 embeddings
    num_nearest: int = 1  # centroids listed per row
    iterations: int = 20  # of k-means
    seed: int = 1234  # of the first centroids
    targets: str = ""  # file of embeddings that clusters are to hold

    def __post_init__(self) -> None:
        if self.num_clusters < 0 or self.num_nearest < 1 or self.iterations < 1:
            raise InputError("cluster: num_clusters must be 0 or more, num_nearest and iterations at least 1")
        if self.targets:
            object.__setattr__(self, "targets", str(Path(self.targets).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the parameters, the digest of the targets in place of their path."""
        return {**super().identity(), "targets": file_identity(self.targets) if self.targets else None}

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        embeddings = read_embeddings(pool, work.folder)
        wanted = self.num_clusters or default_num_clusters(len(embeddings.matrix))
        centroids = train_centroids(embeddings, wanted, iterations=self.iterations, seed=self.seed)
        numbers, cosines = nearest(embeddings, centroids, max(1, min(self.num_nearest, len(centroids))), work)
        own = numbers[:, 0]
        sizes = np.bincount(own, minlength=len(centroids))
        has_vector = embeddings.spread(np.ones(len(own), bool), False)
        hits = self._hit_clusters(centroids)
        columns: dict[str, np.ndarray | pa.Array] = {
            "cluster_id": embeddings.spread(own, 0),
            "cluster_similarity": embeddings.spread(cosines[:, 0], 0),
            "cluster_ids": embeddings.spread(numbers, 0),
            "cluster_size": embeddings.spread(sizes[own], 0),
            "cluster_has_target": pa.nulls(embeddings.num_rows, pa.bool_())
            if hits is None
            else embeddings.spread(hits[own], False),
        }
        yield from write_columns(pool, self.writes, columns, has_vector)

    def _hit_clusters(self, centroids: np.ndarray) -> np.ndarray | None:
        """Tell for each cluster whether it is the nearest of a target."""
        if not self.targets:
            return None
        vectors = read_vectors(self.targets)
        if len(centroids) and vectors.shape[1] != centroids.shape[1]:
            raise InputError(
                f"targets {self.targets!r} have {vectors.shape[1]} dimensions, the pool's embeddings {centroids.shape[1]}; make both "
                f"with the same model"
            )
        hits = np.zeros(len(centroids), bool)
        if len(centroids):
            hits[nearest_of_block(centroids, 1, vectors)[0][:, 0]] = True
        return hits
