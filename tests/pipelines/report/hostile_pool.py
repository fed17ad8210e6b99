"""A pool with everything a report shows, and with names and texts that try to get out of their place in a page."""

from pathlib import Path

import pyarrow as pa

from curate.select import Selection, Top, select
from curate.store import Pool
from tests.curate.pool_builder import annotate_shard
from tests.pool import FAILED_ROWS, Row, make_rows, write_shard

SCRIPT = "<script>alert('caption')</script>"
BREAKOUT = '" onmouseover="alert(1)" x="'
LABEL = 'b"><img src=x onerror=alert(2)>'
COLUMN = "score</title><script>alert(3)</script>"
HOST = "evil<b>.example"
SIZE = 12

_SCORES = pa.schema([(COLUMN, pa.float32()), ("clip_score", pa.float32())])
_COPIES = pa.schema([("near_dedup_group", pa.string()), ("is_near_duplicate", pa.bool_())])
_CLUSTERS = pa.schema([("cluster_id", pa.int32()), ("cluster_similarity", pa.float32())])
_LANGUAGES = pa.schema([("language_code", pa.string()), ("language_probability", pa.float32())])


def hostile_rows(seed: int) -> list[Row]:
    """Return twelve rows as `tests.pool` draws them, with hostile captions, hosts and messages."""
    rows = make_rows(SIZE, seed=seed)
    captions = {0: SCRIPT, 2: BREAKOUT, 8: "</dl></body>", 9: "\u202egnp.exe \U0001f600 caf\u00e9 \x00\x07"}
    urls = {
        0: f"https://{HOST}/{seed}/a.jpg?x=1&y='\"<i>",
        2: f"javascript:alert({seed})",
        8: f"https://www.example.org/{seed}/{BREAKOUT.replace(' ', '%20')}",
        9: f"data:text/html,<script>alert({seed})</script>",
    }
    messages = {1: "HTTP Error <b>404</b>: \"Not\" 'Found'"}
    return [
        Row(
            url=urls.get(number, row.url),
            caption=captions.get(number, row.caption),
            image=row.image,
            status=row.status,
            error_message=messages.get(number, row.error_message),
        )
        for number, row in enumerate(rows)
    ]


def make_hostile_pool(root: Path, *, num_shards: int = 2) -> Pool:
    """Return the pool: labels of scores, copies, clusters and languages, and the selection `<em>mine</em>` where `select_from` makes it."""
    pool = Pool(root)
    for shard in range(num_shards):
        write_shard(pool, shard, hostile_rows(shard), shard_size=SIZE)
        rows = range(SIZE)
        has_picture = [row not in FAILED_ROWS for row in rows]
        scores = [shard + row / 100 if has_picture[row] else None for row in rows]
        annotate_shard(pool, shard, LABEL, {COLUMN: scores, "clip_score": scores}, _SCORES)
        groups = {
            "near_dedup_group": [f"<i>group{row % 4}" if row in {0, 2, 4, 6} else None for row in rows],
            "is_near_duplicate": [has_picture[row] and row in {4, 6} for row in rows],
        }
        annotate_shard(pool, shard, "near.<i>", groups, _COPIES, operator="near_dedup")
        clusters = {
            "cluster_id": [row % 3 if has_picture[row] else None for row in rows],
            "cluster_similarity": [0.5 if has_picture[row] else None for row in rows],
        }
        annotate_shard(pool, shard, "cluster", clusters, _CLUSTERS, operator="cluster")
        languages = {
            "language_code": [("<u>xx" if row % 2 else "en") if has_picture[row] else None for row in rows],
            "language_probability": [0.9 if has_picture[row] else None for row in rows],
        }
        annotate_shard(pool, shard, "language", languages, _LANGUAGES, operator="language")
    return pool


def select_from(pool: Pool) -> str:
    """Make a selection with a hostile rule, and return its folder."""
    rules = {
        "probable <b>enough</b>": "language_probability >= 0.5",
        "high": f'"{LABEL.replace(chr(34), 2 * chr(34))}".clip_score >= 0.04',
        "single": "NOT is_near_duplicate",
    }
    top = Top(by="cluster_similarity + row", fraction=0.8)
    return select(pool, Selection(name="mine", rules=rules, top=top, weight="1 + row")).folder
