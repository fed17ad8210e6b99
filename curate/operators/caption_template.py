"""Captions that many pages make by the same template."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from curate.operator import PoolOperator
from curate.pool_rows import EVERYTHING, stream_query

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

# What is masked, in this order (RE2), and what stands in its place.
_MASKS = (
    (r"https?://\S+|www\.\S+", "<url>"),
    (r"\S+@\S+\.\w+", "<mail>"),
    (r"\S+\.(?i:jpe?g|png|gif|webp|bmp|tiff?)\b", "<file>"),
    (r"\b[0-9a-fA-F]{8,}\b", "<number>"),
    (r"[$\x{20ac}\x{a3}\x{a5}]?\d[\d.,:/x-]*\d%?|[$\x{20ac}\x{a3}\x{a5}]?\d%?", "<number>"),
    # Names: capitalised words in a row, small joining words between them included (RE2 knows word borders of ASCII only).
    (
        r"(^|[^\p{L}])\p{Lu}[\p{L}'\x{2019}.-]*(?:\s+(?:(?:of|the|and|de|van|von|la|&)\s+)*\p{Lu}[\p{L}'\x{2019}.-]*)*",
        r"\1<name>",
    ),
    (r"\s+", " "),
    (r"(?:<name>[ ,]*){2,}", "<name> "),
    (r"(?:<number>[ ,]*){2,}", "<number> "),
)
# A template needs a word of its own: masks and what joins names make none.
_NOT_A_WORD = r"<(?:name|number|url|mail|file)>|\b(?:a|an|and|at|by|de|for|from|in|la|of|on|the|to|van|von|vs|with|x)\b"


@dataclass(frozen=True, kw_only=True)
class CaptionTemplate(PoolOperator):
    """The caption with its particulars masked, and how many captions have the same mask.

    caption_template                the caption in lower case, with <name>, <number>, <url>, <mail> and <file> for what differs from page
                                    to page: "photo of <name> at <name> | stock image <number>"
    caption_template_num_captions   distinct captions of the pool with this template, 1 and up: a template has many, a repeated caption one
    caption_template_ratio          that number / distinct captions of the pool, 0 to 1

    What has no word of its own, "<name>" or "<name> by <name>", is how titles are written and no template: it counts as 1. Rows without a
    caption are null. One aggregation and one join in SQL, which spill to disk where memory does not suffice.
    """

    name = "caption_template"
    version = 2
    reads = ("alt_text",)
    writes = pa.schema([
        ("caption_template", pa.string()),
        ("caption_template_num_captions", pa.int32()),
        ("caption_template_ratio", pa.float32()),
    ])

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 SQL does it all
        schema = pa.schema([("uid", pa.string()), *self.writes, ("error", pa.string())])
        for batch in stream_query(pool, _query()):
            yield pa.table(batch).cast(schema)


def mask_sql(column: str) -> str:
    """Return SQL of a caption's template."""
    masked = column
    for pattern, replacement in _MASKS:
        quoted = pattern.replace("'", "''")
        masked = f"regexp_replace({masked}, '{quoted}', '{replacement}', 'g')"
    return f"lower(trim({masked}))"


def has_word_sql(template: str) -> str:
    """Return SQL that tells whether a template holds more than masks and what joins them."""
    return f"regexp_matches(regexp_replace({template}, '{_NOT_A_WORD}', ' ', 'g'), '\\p{{L}}')"


def _query() -> str:
    captions = f"SELECT DISTINCT alt_text FROM {EVERYTHING} WHERE trim(coalesce(alt_text, '')) <> ''"
    return f"""
        WITH templates AS (SELECT alt_text, {mask_sql("alt_text")} AS template FROM ({captions})),
        counted AS (
            SELECT alt_text, template, count(*) OVER () AS total,
                CASE WHEN {has_word_sql("template")} THEN count(*) OVER (PARTITION BY template) ELSE 1 END AS num
            FROM templates
        )
        SELECT uid, template AS caption_template, num AS caption_template_num_captions, num / total AS caption_template_ratio,
            CASE WHEN template IS NULL THEN 'no alt_text' END AS error
        FROM {EVERYTHING} LEFT JOIN counted USING (alt_text) ORDER BY shard, row
    """
