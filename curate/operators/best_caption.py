"""The alt-text where it fits the picture well enough, else the made caption."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curate.operator import PoolOperator
from curate.pool_rows import EVERYTHING, missing_errors, stream_query
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

_NO_THRESHOLD = -1.0
# White space alone is no caption.
_ALT_TEXT = "regexp_matches(coalesce(alt_text, ''), '\\S')"
_RECAPTION = "regexp_matches(coalesce(recaption, ''), '\\S')"


@dataclass(frozen=True, kw_only=True)
class BestCaption(PoolOperator):
    """One caption per sample by the rule of Nguyen et al. (arXiv 2307.10350): the alt-text above a cut of its score, else the made one.

    best_caption               the text
    best_caption_source        alt_text or recaption
    best_caption_score         its cosine with the picture; null where it has none
    is_best_caption_above_cut  whether that passes the same cut: the paper drops pairs that do not (a rule of the selection)

    The cut is the alt-text score that the best `fraction` of the pool reach (DataComp's rule: the score at place int(n * fraction), ties
    kept), or `threshold`. Reads alt_text_score and caption_score of caption_score, and `recaption`; bind all three for another caption.
    Where one text is missing it is the other.
    """

    name = "best_caption"
    version = 1
    reads = ("alt_text", "recaption", "alt_text_score", "caption_score", "status", "error_message")
    writes = pa.schema([
        ("best_caption", pa.string()),
        ("best_caption_source", pa.string()),
        ("best_caption_score", pa.float32()),
        ("is_best_caption_above_cut", pa.bool_()),
    ])

    fraction: float = 0.3  # of the rows with an alt-text score, whose alt-text stays
    threshold: float = (
        _NO_THRESHOLD  # cosine that the alt-text must reach, instead of the fraction; -1: the fraction decides
    )

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(f"best_caption fraction is {self.fraction}; it must be above 0, and 1 at most")
        if not -1 <= self.threshold <= 1:
            raise InputError(f"best_caption threshold is {self.threshold}; a cosine is between -1 and 1")

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 SQL does it all
        cut = self.threshold if self.threshold > _NO_THRESHOLD else self._find_cut(pool)
        for batch in stream_query(pool, _query(cut)):
            is_missing = batch.column("source").is_null().to_numpy(zero_copy_only=False)
            yield pa.table({
                "uid": batch.column("uid"),
                "best_caption": batch.column("best_caption"),
                "best_caption_source": batch.column("source"),
                "best_caption_score": batch.column("score").cast(pa.float32()),
                "is_best_caption_above_cut": batch.column("is_above"),
                "error": missing_errors(batch, np.asarray(is_missing), "caption"),
            })

    def _find_cut(self, pool: "DuckDBPyRelation") -> float:
        """Return the score at place int(n * fraction), from 0, of the alt-texts' scores from the best down."""
        scored = f"FROM {EVERYTHING} WHERE status = '{STATUS_SUCCESS}' AND {_ALT_TEXT} AND alt_text_score IS NOT NULL"
        num_rows = next(iter(stream_query(pool, f"SELECT count(*) AS num {scored}"))).to_pylist()[0]["num"]
        if not num_rows:
            return 1.0
        place = min(int(num_rows * self.fraction), num_rows - 1)
        query = (
            f"SELECT CAST(alt_text_score AS DOUBLE) AS cut {scored} ORDER BY alt_text_score DESC LIMIT 1 OFFSET {place}"
        )
        return float(next(iter(stream_query(pool, query))).to_pylist()[0]["cut"])


def _query(cut: float) -> str:
    passes = f"(alt_text_score >= {cut!r} AND alt_text_score IS NOT NULL)"
    return f"""
        SELECT uid, status, error_message, source,
            CASE source WHEN 'alt_text' THEN alt_text WHEN 'recaption' THEN recaption END AS best_caption,
            CASE source WHEN 'alt_text' THEN alt_text_score WHEN 'recaption' THEN caption_score END AS score,
            CASE source WHEN 'alt_text' THEN coalesce(alt_text_score >= {cut!r}, false)
                WHEN 'recaption' THEN coalesce(caption_score >= {cut!r}, false) END AS is_above
        FROM (
            SELECT *, CASE WHEN status <> '{STATUS_SUCCESS}' THEN NULL
                WHEN {_ALT_TEXT} AND ({passes} OR NOT {_RECAPTION}) THEN 'alt_text'
                WHEN {_RECAPTION} THEN 'recaption' END AS source
            FROM {EVERYTHING}
        ) ORDER BY shard, row
    """
