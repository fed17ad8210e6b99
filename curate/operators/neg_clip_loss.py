"""How well picture and caption agree beside how much each agrees with everybody: negCLIPLoss."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.embedding import Embeddings, normalise, read_embeddings, take_rows, write_columns
from curate.operator import Operator, PoolOperator
from curate.operators.clip_text_embedding import embed_both
from curate.pool_rows import draw_sql, stream
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

# Rows and columns of similarities held at once.
_TILE = 2_048
# Of one core, for a pair of a batch: a product of one dimension, and the two exponentials; measured.
_PRODUCT_SECONDS = 2.0e-11
_EXPONENTIAL_SECONDS = 1.2e-8


@dataclass(frozen=True, kw_only=True)
class NegClipLoss(PoolOperator):
    """The CLIP score less what picture and caption score with others: negCLIPLoss (Wang et al. 2024, arXiv 2405.19547).

    neg_clip_loss        the cosine of picture and caption, less `temperature` / 2 times the logarithms of both sums of
                         exp(cosine / temperature): of the picture with all captions of a batch, and of the caption with all its pictures.
                         Higher agrees better; 0 where a pair stands out in its batch entirely, below it otherwise: minus the pair's
                         contrastive loss times the temperature. Averaged over `num_partitions` of the pool into batches, drawn anew each
    neg_clip_loss_rank   the share of the pool's pairs that have a lower one, 0 to 1; `neg_clip_loss_rank >= 0.7` is the best 30 %

    Embeddings are computed with `model` (see clip_embedding) where they are not there yet. The authors keep the best 30 % of the pool, then of
    these what NormSim puts highest, a fifth of the pool (see target_similarity), with a temperature of 0.01, OpenAI's, and 10 partitions into
    batches of 32,768. Batches are as even as they can be, and a function of seed and uids. A pair costs time in proportion to all three of
    partitions, batch and dimensions: 7 ms of a core at the defaults and 512 dimensions, shared among the workers.
    """

    name = "neg_clip_loss"
    version = 1
    reads = ("image_embedding", "text_embedding", "status", "error_message")
    writes = pa.schema([("neg_clip_loss", pa.float32()), ("neg_clip_loss_rank", pa.float32())])

    model: str = ""  # CLIP or SigLIP model of the embeddings; needed unless both are bound
    revision: str = ""
    temperature: float = 0.01  # above 0; one over the model's scale
    batch_size: int = 32_768  # pairs that are compared with each other
    num_partitions: int = 10
    seed: int = 0  # of the partitions

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.batch_size < 2 or self.num_partitions < 1:
            raise InputError(
                "neg_clip_loss: temperature must be above 0, batch_size at least 2, num_partitions at least 1, "
                f"got {self.temperature}, {self.batch_size} and {self.num_partitions}"
            )

    def requires(self) -> tuple[Operator, ...]:
        return embed_both(self.model, self.revision, self.label, self.bind) if self.model else ()

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters without the model, which the embeddings' fingerprints hold."""
        names = ("temperature", "batch_size", "num_partitions", "seed")
        return {name: getattr(self, name) for name in names}

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        images = read_embeddings(pool, work.folder)
        texts = read_embeddings(pool, work.folder, "text_embedding")
        rows = np.intersect1d(images.rows, texts.rows, assume_unique=True)
        widths = (images.matrix.shape[1], texts.matrix.shape[1])
        if len(rows) and widths[0] != widths[1]:
            raise InputError(
                f"pictures' embeddings have {widths[0]} dimensions, captions' {widths[1]}; make both with the same model"
            )
        losses = np.zeros(images.num_rows, np.float32)
        losses[rows] = self._measure(pool, images, texts, rows, work)
        ranks = np.zeros(images.num_rows, np.float32)
        ranks[rows] = np.searchsorted(np.sort(losses[rows]), losses[rows]) / max(1, len(rows))
        has_both = np.zeros(images.num_rows, bool)
        has_both[rows] = True
        columns: dict[str, np.ndarray | pa.Array] = {"neg_clip_loss": losses, "neg_clip_loss_rank": ranks}
        what = "image_embedding and text_embedding"
        yield from write_columns(pool, self.writes, columns, has_both, what=what)

    def _measure(
        self, pool: "DuckDBPyRelation", images: Embeddings, texts: Embeddings, rows: np.ndarray, work: "PoolWork"
    ) -> np.ndarray:
        """Return the mean over the partitions for each of the rows."""
        total = np.zeros(len(rows), np.float64)
        places = (np.searchsorted(images.rows, rows), np.searchsorted(texts.rows, rows))
        num_batches = max(1, -(-len(rows) // self.batch_size))

        sent: deque[np.ndarray] = deque()  # batches whose results are still to come, in their order

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
            for number in range(self.num_partitions):
                draws = _draws(pool, self.seed + number)[rows]
                # Equal draws, of equal uids, in the order of the pool.
                for chosen in np.array_split(np.argsort(draws, kind="stable"), num_batches):
                    sent.append(chosen)
                    pictures = take_rows(images.matrix, places[0][chosen])
                    yield pictures, take_rows(texts.matrix, places[1][chosen]), self.temperature

        if len(rows):
            comparisons = self.num_partitions * len(rows) * min(len(rows), self.batch_size)
            cost = images.matrix.shape[1] * _PRODUCT_SECONDS + _EXPONENTIAL_SECONDS
            for found in work.map(_measure_batch, batches(), core_seconds=comparisons * cost):
                total[sent.popleft()] += found
        return (total / self.num_partitions).astype(np.float32)


def _draws(pool: "DuckDBPyRelation", seed: int) -> np.ndarray:
    """Return a number for each row of the pool, even over rows."""
    parts = [batch.column(0).to_numpy() for batch in stream(pool, f"{draw_sql(seed)} AS draw")]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _measure_batch(item: tuple[np.ndarray, np.ndarray, float]) -> np.ndarray:
    images, texts, temperature = item
    return neg_clip_loss(normalise(images), normalise(texts), temperature)


def neg_clip_loss(images: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    """Return the value of each pair of one batch, of unit vectors (n, dimensions) as float32; memory does not grow with the square of n."""
    of_images, of_texts = np.full(len(images), -np.inf), np.full(len(texts), -np.inf)
    for start in range(0, len(images), _TILE):
        rows = images[start : start + _TILE] / np.float32(temperature)
        for other in range(0, len(texts), _TILE):
            logits = rows @ texts[other : other + _TILE].T
            _add(of_images[start : start + _TILE], logits, axis=1)
            _add(of_texts[other : other + _TILE], logits, axis=0)
    cosines = np.einsum("nd,nd->n", images, texts, dtype=np.float64)
    return np.asarray(cosines - temperature / 2 * (of_images + of_texts))


def _add(sums: np.ndarray, logits: np.ndarray, *, axis: int) -> None:
    """Add the exponentials of logits along an axis to `sums`, which are logarithms, in place."""
    largest = logits.max(axis=axis, keepdims=True)
    shares = logits - largest
    np.exp(shares, out=shares)
    ones = np.ones(logits.shape[axis], np.float32)
    # As a product, for the speed of it.
    found = shares @ ones if axis else ones @ shares
    np.logaddexp(sums, np.log(found) + largest.squeeze(axis), out=sums)
