"""Annotations for the small pools of `tests.pool`, written through the contract without running an operator."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from curate.operator import Operator
from curate.plan import digest_headers, missing_shards, open_plan
from curate.store import LabelTarget, Pool
from schemas.annotation import AnnotationHeader, annotation_schema
from tests.pool import make_pool

SCORE = pa.schema([("clip_score", pa.float32())])
WORDS = pa.schema([("caption_num_words", pa.int32()), ("caption_language", pa.string())])
REWRITES = pa.schema([("recaption", pa.string()), ("rewrite", pa.list_(pa.string()))])


def fingerprint_of(name: str) -> str:
    """Return a fixed fingerprint for an annotation's label."""
    return (name.encode().hex() * 64)[:64]


def annotate_shard(
    pool: Pool,
    shard: int,
    label: str,
    columns: Mapping[str, Sequence[object]],
    schema: pa.Schema,
    *,
    operator: str = "clip_score",
    parameters: str = "{}",
    order: Sequence[int] | None = None,
) -> None:
    """Write one annotation file; `order` writes its rows, with their uids, in another order than the shard's."""
    header = pool.shard_header(shard)
    uids = pool.read_table(pool.shard_parquet(shard), ["uid"])["uid"]
    table = pa.table(
        [uids, *(pa.array(columns[name], schema.field(name).type) for name in schema.names), pa.nulls(len(uids))],
        schema=annotation_schema(schema),
    )
    if order is not None:
        table = table.take(pa.array(order))
    annotation = AnnotationHeader(
        operator=operator,
        version="1",
        fingerprint=fingerprint_of(label),
        parameters=parameters,
        shard_digest=header.shard_digest,
        uid_digest=header.uid_digest if order is None else "another order",
    )
    path = pool.annotation_path(operator, fingerprint_of(label), shard)
    pool.commit_table(path, table.replace_schema_metadata(annotation.to_metadata()))
    pool.set_labels({label: LabelTarget(operator=operator, fingerprint=fingerprint_of(label))})


def annotated_pool(root: Path, *, num_shards: int = 3, shard_size: int = 12) -> Pool:
    """Return a pool with the labels b32 and siglip (clip_score), words and recap; row r of shard s has score s + r / 100."""
    pool = make_pool(root, num_shards=num_shards, shard_size=shard_size)
    for shard in pool.shards():
        rows = range(shard_size)
        scores = [shard + row / 100 for row in rows]
        annotate_shard(pool, shard, "b32", {"clip_score": scores}, SCORE)
        annotate_shard(pool, shard, "siglip", {"clip_score": [-score for score in scores]}, SCORE)
        words = {
            "caption_num_words": list(rows),
            "caption_language": ["en" if row % 3 else "de" for row in rows],
        }
        annotate_shard(pool, shard, "words", words, WORDS, operator="caption_stats")
        texts = {
            "recaption": [f"recaption {shard}-{row}" for row in rows],
            "rewrite": [[f"rewrite {shard}-{row}-{copy}" for copy in range(row % 4)] for row in rows],
        }
        annotate_shard(pool, shard, "recap", texts, REWRITES, operator="recap")
    return pool


def find_missing(pool: Pool, operators: Sequence[Operator]) -> dict[str, list[int]]:
    """Return the shards that each operator, and each that these require, still lacks, by its name in SQL."""
    headers, plan = open_plan(pool, operators)
    digest = digest_headers(headers)
    return {label: missing_shards(pool, planned, headers, digest) for planned in plan for label in planned.labels}
