"""A subset that keeps the cross-covariance of pictures and captions: ClipCov."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.cross_covariance import ClassedPairs, measure_gains, pick, sort_by_class
from curate.embedding import Embeddings, read_embeddings, read_vectors, write_columns
from curate.fingerprint import file_identity, model_identity
from curate.kmeans import nearest
from curate.models.labels import encode_labels
from curate.operator import Operator, PoolOperator
from curate.operators.clip_text_embedding import embed_both
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_VECTOR_SUFFIXES = (".npy", ".npz", ".parquet")


@dataclass(frozen=True, kw_only=True)
class ClipCov(PoolOperator):
    """The pairs that together keep the cross-covariance of pictures and captions, by ClipCov's greedy choice (arXiv 2403.12267).

    clip_cov_class     the label most like the picture, 0 and up, in the order of the file: its latent class
    clip_cov_score     what the pair is worth before any is picked: mean similarity with its class, both ways + 2 x cosine of picture and
                       caption + half the cosine of caption and label - cosines of each with the other side's class centre; -2 to 6
    clip_cov_rank      place among the picks, 0 and up; null where not picked. `clip_cov_rank < 1000` is what a `size` of 1000 would pick
    is_clip_cov_kept   whether it was picked
    clip_cov_weight    of a kept row, 0 otherwise: share of its class in the pool over that among the kept, scaled to a mean of 1 over the
                       kept; sampling by it draws every class as often as the pool would

    Reads `image_embedding` and `text_embedding`. `labels` is a text file with a name a line (ImageNet's thousand in the paper), which
    `model` embeds as prompts, or a .npy, .npz or .parquet file of the names' embeddings. Details are those of the published code:
    negative similarities within a class count as 0, picks from a class lower its scores every `update_every`. Compares all pairs of a
    class, so that cost grows with the squares of the classes' sizes: 100,000 pairs in a thousand classes take 9 s of a core. Needs 8 bytes
    of disk per pair and dimension, 100 bytes of memory per pair.
    """

    name = "clip_cov"
    version = 1
    reads = ("image_embedding", "text_embedding", "status", "error_message")
    writes = pa.schema([
        ("clip_cov_class", pa.int32()),
        ("clip_cov_score", pa.float32()),
        ("clip_cov_rank", pa.int64()),
        ("is_clip_cov_kept", pa.bool_()),
        ("clip_cov_weight", pa.float64()),
    ])

    labels: str  # file of class names, or of their embeddings
    model: str = ""  # CLIP or SigLIP model of the embeddings; needed for names
    revision: str = ""
    template: str = "a photo of a {c}"  # prompts of a name, separated by |; averaged
    fraction: float = 0.1  # share of the pairs to pick, above 0 and at most 1
    size: int = 0  # pairs to pick, in place of fraction; 0: as fraction says
    update_every: int = 200  # picks from a class between two updates of its scores

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1 or self.size < 0 or self.update_every < 1:
            raise InputError(
                "clip_cov: fraction must be above 0 and at most 1, size 0 or more, update_every at least 1"
            )
        if not self._has_vectors and not self.model:
            raise InputError(f"clip_cov labels {self.labels!r} are names, which need the `model` that embeds them")
        if "{c}" not in self.template:
            raise InputError(f"clip_cov template {self.template!r} has no {{c}} where the name of a class goes")
        for name in ("labels", "model"):
            path = getattr(self, name)
            if path and Path(path).exists():
                object.__setattr__(self, name, str(Path(path).absolute()))

    @property
    def _has_vectors(self) -> bool:
        return self.labels.lower().endswith(_VECTOR_SUFFIXES)

    def requires(self) -> tuple[Operator, ...]:
        return embed_both(self.model, self.revision, self.label, self.bind) if self.model else ()

    def identity(self) -> dict[str, Any]:
        """Return the parameters, digests in place of paths; the model and its prompts only where they embed the labels."""
        names = (
            {} if self._has_vectors else {"model": model_identity(self.model, self.revision), "template": self.template}
        )
        return {
            "labels": file_identity(self.labels),
            "fraction": self.fraction,
            "size": self.size,
            "update_every": self.update_every,
            **names,
        }

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        images = read_embeddings(pool, work.folder)
        texts = read_embeddings(pool, work.folder, "text_embedding")
        rows = np.intersect1d(images.rows, texts.rows, assume_unique=True)
        has_both = np.zeros(images.num_rows, bool)
        has_both[rows] = True
        if len(rows):
            columns = self._measure(images, texts, rows, work)
        else:
            columns = {field.name: pa.nulls(images.num_rows, field.type) for field in self.writes}
        what = "image_embedding and text_embedding"
        yield from write_columns(pool, self.writes, columns, has_both, what=what)

    def _measure(
        self, images: Embeddings, texts: Embeddings, rows: np.ndarray, work: "PoolWork"
    ) -> dict[str, np.ndarray | pa.Array]:
        labels = self._read_labels(images.matrix.shape[1])
        classes = nearest(images, labels, 1, work)[0][np.searchsorted(images.rows, rows), 0]
        order = np.argsort(classes, kind="stable")
        starts = np.searchsorted(classes[order], np.arange(len(labels) + 1))
        chosen = rows[order]
        pairs = sort_by_class(
            (images.matrix, np.searchsorted(images.rows, chosen)),
            (texts.matrix, np.searchsorted(texts.rows, chosen)),
            starts,
            work.folder,
        )
        gains = measure_gains(pairs, labels, work)
        size = self.size or int(len(rows) * self.fraction)
        picked = pick(pairs, gains, chosen, size, self.update_every)

        def spread(values: np.ndarray) -> np.ndarray:
            found = np.zeros(images.num_rows, values.dtype)
            found[chosen] = values
            return found

        ranks = np.full(images.num_rows, -1, np.int64)
        ranks[chosen[picked]] = np.arange(len(picked))
        return {
            "clip_cov_class": spread(classes[order]),
            "clip_cov_score": spread(gains.score.astype(np.float32)),
            "clip_cov_rank": pa.array(ranks, mask=ranks < 0),
            "is_clip_cov_kept": ranks >= 0,
            "clip_cov_weight": spread(_weigh(pairs, picked)),
        }

    def _read_labels(self, dimensions: int) -> np.ndarray:
        if self._has_vectors:
            labels = read_vectors(self.labels)
        else:
            labels = encode_labels(self.labels, self.model, self.revision, self.template)
        if labels.shape[1] != dimensions:
            raise InputError(
                f"labels {self.labels!r} have {labels.shape[1]} dimensions, the pool's embeddings {dimensions}; make both with the same "
                "model"
            )
        return labels


def _weigh(pairs: ClassedPairs, picked: np.ndarray) -> np.ndarray:
    classes = pairs.classes
    kept = np.bincount(classes[picked], minlength=len(pairs.starts) - 1)
    weights = np.zeros(len(classes))
    # Classes without a pick are nobody's to stand for.
    represented = np.diff(pairs.starts)[kept > 0].sum()
    own = classes[picked]
    weights[picked] = np.diff(pairs.starts)[own] / kept[own] * len(picked) / max(represented, 1)
    return weights
