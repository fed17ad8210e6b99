"""How near a sample is to a set of targets: NormSim, and CiT's similarity to metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.embedding import normalise, read_vectors
from curate.fingerprint import file_identity
from curate.models.clip import to_matrix
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError

# Targets compared at once: bounds memory for batches of a few hundred rows.
_BLOCK = 16_384


@dataclass(frozen=True, kw_only=True)
class TargetSimilarity(ShardOperator):
    """Cosines with target embeddings: the largest (NormSim-inf, arXiv 2405.19547; CiT, arXiv 2301.02241) and their norm (NormSim-2).

    target_similarity        the largest cosine with any target, -1 to 1
    target_norm_similarity   the square root of the sum of squared cosines, 0 and up: many targets that are somewhat near count too.
                             A cosine below 0 counts as much as one above it: mind that where a model has many such
    target_nearest           number of the nearest target, in the order of the file; the first of equal ones

    `targets` is a .npy, .npz or .parquet file of embeddings by the same model. Reads `image_embedding` of clip_embedding, or, as CiT does
    with the names of classes, `bind.image_embedding=clip_text_embedding.text_embedding`. CiT keeps > 0.55 (YFCC15M), negCLIPLoss the best 20 %
    of the pool by the norm. Thousand targets cost 50 us per row and core.
    """

    name = "target_similarity"
    version = 1
    reads = ("image_embedding",)
    writes = pa.schema([
        ("target_similarity", pa.float32()),
        ("target_norm_similarity", pa.float32()),
        ("target_nearest", pa.int32()),
    ])

    targets: str  # file of embeddings

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", str(Path(self.targets).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the targets' digest: where the file lies does not matter."""
        return {"targets": file_identity(self.targets)}

    def load(self) -> Annotate:
        targets = read_vectors(self.targets)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            return compare(normalise(to_matrix(batch.column("image_embedding"))), targets, self.targets)

        return annotate


def compare(vectors: np.ndarray, targets: np.ndarray, source: str) -> dict[str, Any]:
    """Return the columns for unit vectors; raises InputError where the targets are of another model."""
    best, nearest = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int32)
    squares = np.zeros(len(vectors), np.float64)
    if len(vectors) and vectors.shape[1] != targets.shape[1]:
        raise InputError(
            f"targets {source!r} have {targets.shape[1]} dimensions, the pool's embeddings {vectors.shape[1]}; make both with the same model"
        )
    for start in range(0, len(targets) if len(vectors) else 0, _BLOCK):
        cosines = vectors @ targets[start : start + _BLOCK].T
        place = cosines.argmax(axis=1)
        largest = cosines[np.arange(len(vectors)), place]
        nearest = np.where(largest > best, place + start, nearest).astype(np.int32)
        best = np.maximum(best, largest)
        squares += np.square(cosines, dtype=np.float64).sum(axis=1)
    return {
        "target_similarity": np.clip(best, -1, 1),
        "target_norm_similarity": np.sqrt(squares).astype(np.float32),
        "target_nearest": nearest,
    }
