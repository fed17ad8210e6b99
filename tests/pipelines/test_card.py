"""Cards: every number from the files, nothing from the web that could become markup."""

from pathlib import Path

import pyarrow as pa
import pytest

from curate.executor import Executor
from curate.fetch.errors import OPTED_OUT
from curate.select import select
from curate.selection import Selection
from curate.store import Pool
from pipelines.card import card, collect, describe_dataset
from pipelines.export.source import SelectionSource, open_source
from schemas.errors import InputError
from schemas.sample import SHARD_DIGEST_KEY, UID_DIGEST_KEY
from tests.curate.pool_builder import annotate_shard
from tests.pipelines.export.datasets import embed, make_dataset
from tests.pool import make_pool

LANGUAGES = pa.schema([("language_code", pa.string())])
MODEL = '{"model":{"model":"some/model","revision":"' + "a" * 40 + '"}}'
HOSTILE = "</details><script>alert(1)</script> `x` | [a](javascript:b)\n# Heading"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """One shard: a picture whose host opted out, licences and languages, hostile text wherever the web can put it."""
    pool = make_pool(tmp_path_factory.mktemp("card") / "pool", num_shards=1)
    header = pool.shard_header(0)
    table = pool.read_table(pool.shard_parquet(0))
    messages = table["error_message"].to_pylist()
    messages[1], messages[3] = OPTED_OUT, HOSTILE
    table = table.set_column(table.schema.get_field_index("error_message"), "error_message", [messages])
    table = table.append_column("license", [["CC BY 4.0" if row % 2 else HOSTILE for row in range(12)]])
    metadata = {SHARD_DIGEST_KEY: header.shard_digest.encode(), UID_DIGEST_KEY: header.uid_digest.encode()}
    pool.commit_table(pool.shard_parquet(0), table.replace_schema_metadata(metadata))
    codes = {"language_code": ["en"] * 7 + [HOSTILE] * 5}
    annotate_shard(pool, 0, "language", codes, LANGUAGES, operator="language", parameters=MODEL)
    embed(pool, "tower", "image_embedding", seed=1, shards=(0,), parameters=MODEL)
    select(pool, Selection(name="card", rules={"odd | <b>": "row <> 2 AND language_code IS NOT NULL"}))
    return pool


def selection(pool: Pool) -> SelectionSource:
    source = open_source("card", pool.root)
    assert isinstance(source, SelectionSource)
    return source


def test_facts_are_counted_in_the_pool(pool: Pool) -> None:
    facts = collect(selection(pool))
    assert facts["outcomes"] == {"success": 10, OPTED_OUT: 1, HOSTILE: 1}
    assert facts["languages"] == {HOSTILE: 5, "en": 4}
    assert facts["licences"] == {"CC BY 4.0": 4, HOSTILE: 5}
    assert facts["hosts"] == {"example.org": 9}
    assert {entry["label"]: entry["is_read"] for entry in facts["operators"]} == {"language": True, "tower": False}
    assert all(entry["parameters"]["model"]["revision"] == "a" * 40 for entry in facts["operators"])


def test_a_card_says_what_was_counted(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    source = make_dataset(pool, tmp_path, ray_session, selection="card")
    text = card(source.store.root, pool.root)
    assert "9 image-text pairs in 1 shards" in text
    assert "| listed |  |  | 12 |" in text
    assert "| downloaded | `status = 'success'` | 2 | 10 |" in text
    assert "`row <> 2 AND language_code IS NOT NULL` | 1 | 9 |" in text
    assert (
        "1 pictures were left out because their host's X-Robots-Tag forbids such use, and 0 because of robots.txt"
        in text
    )
    assert "| `CC BY 4.0` | 4 |" in text
    assert "some/model" in text
    assert "a" * 40 in text
    assert "For this selection overlap with evaluation sets was not looked for." in text
    assert card(source.store.root, pool.root) == text


def test_nothing_from_the_web_is_markup(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    source = make_dataset(pool, tmp_path, ray_session, selection="card")
    text = card(source.store.root, pool.root)
    outside = "".join(part for number, part in enumerate(text.split("`")) if number % 2 == 0)
    assert "script" in text
    assert "<" not in outside
    assert "javascript" not in outside
    assert not [line for line in text.splitlines() if line.startswith("# Heading")]
    for line in text.splitlines():
        if line.startswith("| "):
            cells = line.replace("\\|", "").count("|")
            assert cells in (3, 5, 6), line


def test_a_card_without_a_pool_says_so(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    source = make_dataset(pool, tmp_path, ray_session, selection="card")
    text = describe_dataset(source.index, {})
    assert "The pool was not at hand when this card was written" in text
    assert "| downloaded |" in text
    with pytest.raises(InputError, match=r"is not a dataset: it has no index\.json"):
        card(str(tmp_path / "nothing"))
