"""Whatever an operator's policy for copies, one of each group stays, and `per_group` finds it among the rows that other rules leave."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.operator import PoolOperator
from curate.operators.caption_dedup import CaptionDedup
from curate.operators.exact_dedup import ExactDedup
from curate.operators.near_dedup import NearDedup
from curate.operators.semantic_dedup import SemanticDedup
from curate.pool_work import PoolWork
from curate.select import PerGroup, Selection, select
from curate.store import Pool
from tests.curate.pool_builder import annotate_shard
from tests.embedding import clustered
from tests.pool import FAILED_ROWS, make_pool

NUM_ROWS = 240
# Operator, its column of groups, and the flag that a rule reads.
POLICIES = [
    *(
        (NearDedup(keep=keep, flips=flips), "near_dedup_group", "is_near_duplicate")
        for keep in ("largest", "smallest_uid")
        for flips in (False, True)
    ),
    *(
        (CaptionDedup(keep=keep), "caption_dedup_group", "is_caption_near_duplicate")
        for keep in ("longest", "smallest_uid")
    ),
    *((ExactDedup(), f"{what}_duplicate_group", f"is_{what}_duplicate") for what in ("image", "caption", "pair")),
    *(
        (SemanticDedup(keep=keep, num_clusters=9, eps=0.5), "semantic_dedup_cluster", "is_semantic_duplicate")
        for keep in ("hard", "easy", "random")
    ),
]


def make_rows(seed: int) -> pa.Table:
    """Return rows of a few pictures and captions, each many times and a little different."""
    random = np.random.default_rng(seed)
    which, words = random.integers(12, size=NUM_ROWS), random.integers(8, size=NUM_ROWS)
    hashes = random.integers(0, 1 << 63, 12, np.uint64)[which] ^ (
        np.uint64(1) << random.integers(0, 64, NUM_ROWS, np.uint64)
    )
    layouts = random.integers(0, 256, (12, 128)).astype(np.uint8)[which]
    vectors = clustered(NUM_ROWS, 12, 16, spread=0.05, seed=seed)
    texts = [
        f"a photo of thing number {word} in the garden of my house" + "!" * int(which[row] % 3)
        for row, word in enumerate(words)
    ]
    return pa.table({
        "shard": pa.array(np.arange(NUM_ROWS) // 100, pa.int32()),
        "row": pa.array(np.arange(NUM_ROWS) % 100, pa.int32()),
        "uid": [f"{value:032x}" for value in random.permutation(NUM_ROWS)],
        "image_perceptual_hash": pa.array(hashes, pa.uint64()),
        "image_colour_layout": pa.array([layout.tobytes() for layout in layouts], pa.binary()),
        "image_embedding": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32())),
        "original_width": pa.array(random.integers(100, 900, NUM_ROWS), pa.int32()),
        "original_height": pa.array(random.integers(100, 900, NUM_ROWS), pa.int32()),
        "sha256": [str(number) for number in which],
        "alt_text": texts,
        "status": ["success"] * NUM_ROWS,
        "error_message": pa.nulls(NUM_ROWS, pa.string()),
    })


@pytest.mark.parametrize(("operator", "group", "flag"), POLICIES)
def test_one_of_each_group_stays(operator: PoolOperator, group: str, flag: str, tmp_path: Path) -> None:
    import duckdb

    with duckdb.connect() as connection:
        tables = list(operator.annotate(connection.from_arrow(make_rows(1)), PoolWork(tmp_path)))
    found = pa.concat_tables(tables)
    members: dict[Any, list[bool]] = {}
    for name, is_copy in zip(found[group].to_pylist(), found[flag].to_pylist(), strict=True):
        members.setdefault(name, []).append(is_copy)
    assert max(map(len, members.values())) > 5
    for flags in members.values():
        # SemDeDup's clusters hold several pictures each; of groups of copies exactly one stays.
        assert flags.count(False) == 1 if group != "semantic_dedup_cluster" else False in flags


def test_a_group_whose_first_fails_a_rule_keeps_another(tmp_path: Path) -> None:
    pool: Pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=12)
    good = [row for row in range(12) if row not in FAILED_ROWS]
    schema = pa.schema([("near_dedup_group", pa.string()), ("is_near_duplicate", pa.bool_()), ("score", pa.float32())])
    columns = {
        "near_dedup_group": ["one"] * 12,
        "is_near_duplicate": [row != good[0] for row in range(12)],
        "score": [float(row) for row in range(12)],
    }
    annotate_shard(pool, 0, "n", columns, schema)
    rules = {"not the first": f"n.score > {good[0]}"}
    flagged = select(pool, Selection(name="flag", rules={**rules, "copy": "NOT n.is_near_duplicate"}))
    assert flagged.num_kept == 0
    capped = select(
        pool,
        Selection(name="cap", rules=rules, per_group=PerGroup(by="n.near_dedup_group", num_samples=1, order="n.score")),
    )
    kept = pool.read_table(f"{capped.folder}/selected.parquet")
    assert kept["row"].to_pylist() == [good[-1]]
