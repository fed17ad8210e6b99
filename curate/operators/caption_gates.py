"""ALIP's gates, computed once for the pool instead of in every training step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curate.operator import PoolOperator
from curate.pool_rows import EVERYTHING, missing_errors, stream, stream_query
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_SCORES = ("caption_agreement", "alt_text_score", "caption_score")
_HAS_ALL = f"status = '{STATUS_SUCCESS}' AND {' AND '.join(f'{name} IS NOT NULL' for name in _SCORES)}"
# Whole numbers add up to the same in any order.
_SCALE = 1 << 40


@dataclass(frozen=True, kw_only=True)
class CaptionGates(PoolOperator):
    """ALIP's weights (arXiv 2308.08428) with the pool's means in place of its running averages of batches.

    language_gate   W_s = min(1, exp(gamma (S_tc - H_tc))), above 0 to 1: how far alt-text and caption agree
    alt_text_gate   W_t = exp(gamma (S_xt - H_xt)) where W_s < 1, else 1: may exceed 1
    caption_gate    W_c = exp(gamma (S_xc - H_xc)) where W_s < 1, else 1: may exceed 1
    gate_weight     W_s (W_t + W_c) / 2: what the sample's two losses weigh together, to be written as a selection's weight

    S are caption_agreement, alt_text_score and caption_score of caption_score, H their means over the pool's rows that have all three.
    The trainer's ALIP loss computes the gates itself from what it learns; these say what a fixed model says, and cost no training.
    """

    name = "caption_gates"
    version = 1
    reads = (*_SCORES, "status", "error_message")
    writes = pa.schema([
        ("language_gate", pa.float32()),
        ("alt_text_gate", pa.float32()),
        ("caption_gate", pa.float32()),
        ("gate_weight", pa.float32()),
    ])

    gamma: float = 2.0  # of the exponentials

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"caption_gates gamma is {self.gamma}; it must be above 0")

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 SQL does it all
        means = _means(pool)
        for batch in stream(pool, f"uid, status, error_message, {', '.join(_SCORES)}, {_HAS_ALL} AS is_whole"):
            is_missing = ~batch.column("is_whole").fill_null(False).to_numpy(zero_copy_only=False)
            scores = {
                name: batch.column(name).fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
                for name in _SCORES
            }
            columns = gates(scores, means, self.gamma)
            yield pa.table({
                "uid": batch.column("uid"),
                **{name: pa.array(values.astype(np.float32), mask=is_missing) for name, values in columns.items()},
                "error": missing_errors(batch, is_missing, "caption_score"),
            })


def gates(scores: Mapping[str, np.ndarray], means: Mapping[str, float], gamma: float = 2.0) -> dict[str, np.ndarray]:
    """Return the columns of `CaptionGates` for scores and their histories."""
    raw, alt_text, caption = (np.exp(gamma * (scores[name] - means[name])) for name in _SCORES)
    is_below = raw < 1
    alt_text, caption = np.where(is_below, alt_text, 1.0), np.where(is_below, caption, 1.0)
    language = np.minimum(raw, 1.0)
    return {
        "language_gate": language,
        "alt_text_gate": alt_text,
        "caption_gate": caption,
        "gate_weight": language * (alt_text + caption) / 2,
    }


def _means(pool: "DuckDBPyRelation") -> dict[str, float]:
    sums = ", ".join(f"sum(CAST(round({name} * {_SCALE}) AS HUGEINT)) AS {name}" for name in _SCORES)
    query = f"SELECT {', '.join(f'CAST({name} / num / {_SCALE} AS DOUBLE) AS {name}' for name in _SCORES)} FROM "
    query += f"(SELECT count(*) AS num, {sums} FROM {EVERYTHING} WHERE {_HAS_ALL})"
    row = next(iter(stream_query(pool, query))).to_pylist()[0]
    return {name: row[name] or 0.0 for name in _SCORES}
