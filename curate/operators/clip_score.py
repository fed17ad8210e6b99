"""How well picture and caption agree, by a CLIP or SigLIP model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.models.clip import to_matrix
from curate.operator import Annotate, Operator, ShardOperator
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_text_embedding import ClipTextEmbedding


@dataclass(frozen=True, kw_only=True)
class ClipScore(ShardOperator):
    """The cosine of the picture's and the caption's embedding (Hessel et al. 2021, without its factor), -1 to 1, higher agrees better.

    Computes both embeddings with `model` (see clip_embedding) where they are not there yet. LAION keeps >= 0.28 for English with CLIP
    ViT-B/32, DataComp the best 30 % with ViT-L/14; thresholds do not carry over between models. Several models side by side:
    `clip_score:model=A,label=a clip_score:model=B,label=b`, then `a.clip_score > 0.28 AND b.clip_score > 0.2`.
    """

    name = "clip_score"
    version = 1
    reads = ("image_embedding", "text_embedding")
    writes = pa.schema([("clip_score", pa.float32())])

    model: str
    revision: str = ""

    def requires(self) -> tuple[Operator, ...]:
        # Named after this one, so that two models' embeddings do not want the same label.
        suffix = f"{self.label}_" if self.label else ""
        text_bind = {"alt_text": self.bind["alt_text"]} if "alt_text" in self.bind else {}
        image_bind = {"image": self.bind["image"]} if "image" in self.bind else {}
        return (
            ClipEmbedding(
                model=self.model,
                revision=self.revision,
                bind=image_bind,
                label=f"{suffix}clip_embedding" if suffix else "",
            ),
            ClipTextEmbedding(
                model=self.model,
                revision=self.revision,
                bind=text_bind,
                label=f"{suffix}clip_text_embedding" if suffix else "",
            ),
        )

    def identity(self) -> Mapping[str, Any]:
        """Return nothing: the embeddings' fingerprints hold the model."""
        return {}

    def load(self) -> Annotate:
        return _annotate


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    images, texts = to_matrix(batch.column("image_embedding")), to_matrix(batch.column("text_embedding"))
    # Half precision leaves the vectors a little off unit length.
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return {"clip_score": pa.array(((images * texts).sum(axis=1) / lengths).astype(np.float32))}
