"""Rows with embeddings, as pool-wide operators read them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length one."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def clustered(
    num_rows: int, num_clusters: int, dimensions: int = 16, *, spread: float = 0.3, seed: int = 0
) -> np.ndarray:
    """Return unit vectors around random centres."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_clusters, dimensions))
    return unit(centres[np.arange(num_rows) % num_clusters] + spread * random.normal(size=(num_rows, dimensions)))


def embedding_rows(vectors: np.ndarray, *, missing: Sequence[int] = (), lost: Sequence[int] = ()) -> pa.Table:
    """Return rows of two shards: `missing` have no embedding, `lost` no picture either."""
    num_rows = len(vectors)
    absent = {*missing, *lost}
    # DuckDB reads half precision from Parquet as FLOAT, and from Arrow not at all.
    halves = vectors.astype(np.float16).astype(np.float32)
    lists = [None if row in absent else halves[row] for row in range(num_rows)]
    half = -(-num_rows // 2)
    return pa.table({
        "shard": pa.array([row // half for row in range(num_rows)], pa.int32()),
        "row": pa.array([row % half for row in range(num_rows)], pa.int32()),
        "uid": [f"{row:032x}" for row in range(num_rows)],
        "image_embedding": pa.array(lists, pa.list_(pa.float32())),
        "status": ["failed_to_download" if row in lost else "success" for row in range(num_rows)],
        "error_message": pa.array(["gone" if row in lost else None for row in range(num_rows)], pa.string()),
    })
