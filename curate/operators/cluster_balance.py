"""Balancing clusters: rows of crowded ones are kept less often."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curate.operator import PoolOperator
from curate.operators.concept_balance import find_t
from curate.pool_rows import draw_sql, missing_errors, stream, to_uniform
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork


@dataclass(frozen=True, kw_only=True)
class ClusterBalance(PoolOperator):
    """Semantic balance over clusters (RealSyn, arXiv 2502.12513): a probability of keeping, and a weight.

    cluster_balance_probability   min(1, t / rows of the cluster), 0 to 1: clusters of more than t rows are cut to about t
    is_cluster_balance_kept       one draw with that probability, a function of `seed` and uid
    cluster_balance_weight        (rows of the cluster) ** -alpha, scaled to a mean of 1: a weight for sampling instead of cutting

    Reads `cluster_id` of cluster; bind it to balance by anything that is a whole number. `target_size` finds the t at which so many rows
    are expected to stay.
    """

    name = "cluster_balance"
    version = 1
    reads = ("cluster_id", "status", "error_message")
    writes = pa.schema([
        ("cluster_balance_probability", pa.float64()),
        ("is_cluster_balance_kept", pa.bool_()),
        ("cluster_balance_weight", pa.float64()),
    ])

    t: float = 20_000  # rows that a cluster may have before it is cut
    target_size: int = 0  # rows to expect; 0: as `t` says
    alpha: float = 0.5  # of the weight: 0 leaves clusters as they are, 1 makes them all count alike
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        if not self.t > 0 or self.target_size < 0 or not 0 <= self.alpha <= 1:
            raise InputError("cluster_balance: t must be above 0, target_size 0 or more, alpha 0 to 1")

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 a count per cluster is small
        counts: dict[int, int] = {}
        for batch in stream(pool, "cluster_id"):
            ids, sizes = np.unique(batch.column(0).drop_null().to_numpy(), return_counts=True)
            for cluster, size in zip(ids.tolist(), sizes.tolist(), strict=True):
                counts[cluster] = counts.get(cluster, 0) + size
        clusters = np.array(sorted(counts), np.int64)
        sizes = np.array([counts[cluster] for cluster in clusters.tolist()], np.float64)
        probability = np.minimum(1.0, self._find_t(sizes) / sizes)
        weight = sizes**-self.alpha
        weight *= sizes.sum() / max((weight * sizes).sum(), 1e-300)
        for batch in stream(pool, f"uid, cluster_id, status, error_message, {draw_sql(self.seed)} AS draw"):
            column = batch.column("cluster_id")
            is_lost = column.is_null().to_numpy(zero_copy_only=False)
            place = np.searchsorted(clusters, column.fill_null(0).to_numpy(zero_copy_only=False))
            place = np.where(is_lost, 0, place)
            shares, weights = (np.append(values, 0.0)[place] for values in (probability, weight))
            kept = to_uniform(batch.column("draw").to_numpy()) < shares
            yield pa.table({
                "uid": batch.column("uid"),
                "cluster_balance_probability": pa.array(shares, mask=is_lost),
                "is_cluster_balance_kept": pa.array(kept, mask=is_lost),
                "cluster_balance_weight": pa.array(weights, mask=is_lost),
                "error": missing_errors(batch, is_lost, "cluster_id"),
            })

    def _find_t(self, sizes: np.ndarray) -> float:
        if not self.target_size or not len(sizes):
            return self.t
        return find_t(lambda t: float(np.minimum(sizes, t).sum()), self.target_size, float(sizes.max()))
