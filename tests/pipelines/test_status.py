"""What `winnow status` sees."""

import json
from pathlib import Path

import pyarrow as pa

from curate.annotate import annotate
from curate.effort import LOG_FILE
from curate.executor import Executor
from curate.parse import parse_operator
from curate.select import Selection, select
from curate.store import Pool
from pipelines.render import tabulate_status
from pipelines.status import status
from schemas.progress import SilentProgress
from schemas.sample import SHARD_DIGEST_KEY
from tests.pipelines.text import as_text


def test_a_fresh_pool(tiny_pool: Pool) -> None:
    found = status(tiny_pool)
    assert (found.num_shards, found.num_samples, found.num_successes) == (2, 24, 20)
    assert found.errors == (("HTTP Error 404: Not Found", 2), ("Image decoding error", 2))
    assert found.operators == found.selections == ()
    assert found.num_bytes == sum(path.stat().st_size for path in Path(tiny_pool.locate("shards")).iterdir())


def test_annotations_selections_and_cost(tiny_pool: Pool, ray_session: Executor) -> None:
    operators = [parse_operator("caption_stats"), parse_operator("image_stats:label=img")]
    annotate(tiny_pool, operators, executor=ray_session, progress=SilentProgress())
    select(tiny_pool, Selection(name="few", rules={"words": "caption_num_words > 100"}))
    found = status(tiny_pool)
    by_label = {entry.label: entry for entry in found.operators}
    assert set(by_label) == {"caption_stats", "img"}
    image = by_label["img"]
    assert (image.operator, image.done, image.stale, image.total) == ("image_stats", 2, 0, 2)
    # Two failed downloads and one broken file in each shard.
    assert image.errors == 6
    assert image.num_bytes > 0
    lines = [json.loads(line) for line in tiny_pool.read_bytes(LOG_FILE).decode().splitlines()]
    total = sum(line["seconds"] for line in lines)
    assert abs(sum(entry.seconds for entry in found.operators) - total) <= 0.2
    assert [(Path(entry.folder).parts[0], entry.num_kept) for entry in found.selections] == [("selections", 0)]
    text = as_text(tabulate_status(found))
    assert "2 shards, 24 samples, 20 downloaded (83.3%)" in text
    assert "HTTP Error 404: Not Found" in text
    assert "2/2" in text
    assert json.loads(found.to_json())["operators"][0]["label"] == "caption_stats"


def test_a_changed_shard_makes_its_annotations_stale(tiny_pool: Pool, ray_session: Executor) -> None:
    annotate(tiny_pool, [parse_operator("caption_stats")], executor=ray_session, progress=SilentProgress())
    path = tiny_pool.shard_parquet(1)
    table: pa.Table = tiny_pool.read_table(path)
    tiny_pool.commit_table(path, table.replace_schema_metadata({**table.schema.metadata, SHARD_DIGEST_KEY: b"other"}))
    (entry,) = status(tiny_pool).operators
    assert (entry.done, entry.stale, entry.total) == (1, 1, 2)


def test_parameters_that_lost_their_label_are_still_listed(tiny_pool: Pool, ray_session: Executor) -> None:
    annotate(tiny_pool, [parse_operator("language")], executor=ray_session, progress=SilentProgress())
    bound = parse_operator("language:bind.alt_text=url")
    annotate(tiny_pool, [bound], executor=ray_session, progress=SilentProgress())
    assert [(entry.label, entry.operator) for entry in status(tiny_pool).operators] == [
        ("language", "language"),
        ("", "language"),
    ]


def test_a_cut_off_line_of_the_log_is_ignored(tiny_pool: Pool, ray_session: Executor) -> None:
    annotate(tiny_pool, [parse_operator("language")], executor=ray_session, progress=SilentProgress())
    with Path(tiny_pool.locate(LOG_FILE)).open("a") as file:
        file.write('{"time": "2026')
    assert status(tiny_pool).operators[0].done == 2
