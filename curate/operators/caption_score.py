"""How well a made caption agrees with the picture and with the web text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.models.clip import to_matrix
from curate.operator import Annotate, Operator, ShardOperator
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_text_embedding import ClipTextEmbedding

_EMBEDDING = "recaption_embedding"
_LABEL_SUFFIX = "_text_embedding"


@dataclass(frozen=True, kw_only=True)
class CaptionScore(ShardOperator):
    """The three cosines between picture, alt-text and a made caption, -1 to 1, higher agrees better: what ALIP's gates weigh.

    caption_score       picture and caption (arXiv 2307.10350 keeps captions by it)
    alt_text_score      picture and alt-text: what clip_score gives
    caption_agreement   caption and alt-text, by the same text tower (ALIP, arXiv 2308.08428; also Sieve, arXiv 2310.02110)

    Computes the embeddings with `model` (see clip_embedding) where they are not there yet. The caption is the column `recaption`; for
    another one `bind.recaption=fuse.fused_caption,label=fused`, once per caption column. A row without alt-text has no scores.
    """

    name = "caption_score"
    version = 1
    reads = ("recaption", "image_embedding", "text_embedding", _EMBEDDING)
    writes = pa.schema([
        ("caption_score", pa.float32()),
        ("alt_text_score", pa.float32()),
        ("caption_agreement", pa.float32()),
    ])

    model: str
    revision: str = ""

    def __post_init__(self) -> None:
        # The two texts' embeddings are columns of one name, which only labels tell apart.
        bound = self.bind.get(_EMBEDDING, _LABEL_SUFFIX)
        if bound.endswith(f"{_LABEL_SUFFIX}.text_embedding") or bound == _LABEL_SUFFIX:
            own = f"{self.sql_name}{_LABEL_SUFFIX}.text_embedding"
            object.__setattr__(self, "bind", {**self.bind, _EMBEDDING: own})

    def requires(self) -> tuple[Operator, ...]:
        suffix = f"{self.label}_" if self.label else ""
        tower = {"model": self.model, "revision": self.revision}
        image_bind = {"image": self.bind["image"]} if "image" in self.bind else {}
        text_bind = {"alt_text": self.bind["alt_text"]} if "alt_text" in self.bind else {}
        recaption_bind = {"alt_text": self.bind.get("recaption", "recaption")}
        return (
            ClipEmbedding(**tower, bind=image_bind, label=f"{suffix}clip_embedding" if suffix else ""),
            ClipTextEmbedding(**tower, bind=text_bind, label=f"{suffix}clip_text_embedding" if suffix else ""),
            ClipTextEmbedding(**tower, bind=recaption_bind, label=f"{self.sql_name}{_LABEL_SUFFIX}"),
        )

    def identity(self) -> Mapping[str, Any]:
        """Return nothing: the embeddings' fingerprints hold the model."""
        return {}

    def load(self) -> Annotate:
        return _annotate


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    image, text, caption = (_unit(batch, name) for name in ("image_embedding", "text_embedding", _EMBEDDING))
    return {
        "caption_score": _cosine(image, caption),
        "alt_text_score": _cosine(image, text),
        "caption_agreement": _cosine(caption, text),
    }


def _unit(batch: pa.Table, name: str) -> np.ndarray:
    vectors = to_matrix(batch.column(name))
    # Half precision leaves the vectors a little off unit length.
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _cosine(left: np.ndarray, right: np.ndarray) -> pa.Array:
    return pa.array((left * right).sum(axis=1).astype(np.float32))
