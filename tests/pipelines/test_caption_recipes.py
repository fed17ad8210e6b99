"""Recipes with made captions, run over real HTTP and Ray with a tiny CLIP: which text each sample gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.annotate import annotate
from curate.catalog import Catalog
from curate.executor import Executor
from curate.select import select
from curate.store import Pool
from pipelines.recipe import OperatorCall, Recipe, load_recipe
from tests.chat_model import Asked, ChatModel
from tests.model import make_checkpoint
from tests.pool import CORRUPT_ROW, FAILED_ROWS, NULL_CAPTION_ROW, make_pool

SERVED = {"recaption", "fuse"}
NUM_ROWS = 12


def describe(asked: Asked) -> str:
    """Describe a picture by its bytes, and merge texts by putting them in a row."""
    if asked.image:
        return f"A picture of {len(asked.image)} bytes. It is not large."
    return " and ".join(asked.texts[-1].split('"')[1::2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP folder."""
    return str(make_checkpoint(tmp_path_factory.mktemp("clip") / "model"))


def run_recipe(
    name: str, folder: Path, clip: str, executor: Executor
) -> tuple[Recipe, list[dict[str, Any]], dict[str, Any]]:
    """Return a recipe, the selected rows with their captions and what the selection says of itself."""
    with ChatModel(describe) as served:
        recipe = load_recipe(
            name, ["parameters.captioner=x", *([f"parameters.model={clip}"] if name == "best-caption" else [])]
        )
        calls = [_served(call, served.url) for call in recipe.annotate]
        pool = make_pool(folder / "pool", num_shards=1, shard_size=NUM_ROWS)
        annotate(pool, [call.build() for call in calls], executor=executor)
    assert recipe.select is not None
    report = select(pool, recipe.select)
    return recipe, _rows(pool, recipe), {"num_kept": report.num_kept}


def _served(call: OperatorCall, url: str) -> OperatorCall:
    if call.name not in SERVED:
        return call
    return OperatorCall(
        name=call.name,
        parameters={**call.parameters, "model": "test", "engine": "openai", "url": url, "temperature": 0.0},
    )


def _rows(pool: Pool, recipe: Recipe) -> list[dict[str, Any]]:
    assert recipe.select is not None
    columns = [name.removesuffix("[*]") for name in recipe.select.captions]
    listed = ", ".join(f"{name} AS {name.rpartition('.')[2]}" for name in dict.fromkeys(["alt_text", *columns]))
    with Catalog(pool) as catalog:
        return list(catalog.sql(f"SELECT row, {listed} FROM pool ORDER BY row").to_arrow_table().to_pylist())


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("veclip", lambda row: row["fused_caption"].startswith(f"{row['alt_text']} and A picture of ")),
        ("rwkv-clip", lambda row: row["fused_caption"].startswith(f"{row['alt_text']} and {row['recaption']} and ")),
        ("dreamlip", lambda row: row["sub_captions"][1:] == ["It is not large."]),
    ],
)
def test_made_captions(
    name: str, check: Callable[[dict[str, Any]], bool], tmp_path: Path, clip: str, ray_session: Executor
) -> None:
    _, rows, selection = run_recipe(name, tmp_path, clip, ray_session)
    assert selection["num_kept"] == NUM_ROWS - len(FAILED_ROWS)
    whole = [row for row in rows if row["row"] not in (*FAILED_ROWS, CORRUPT_ROW, NULL_CAPTION_ROW)]
    assert len(whole) == 8
    assert all(check(row) for row in whole)


def test_best_captions(tmp_path: Path, clip: str, ray_session: Executor) -> None:
    _, rows, selection = run_recipe("best-caption", tmp_path, clip, ray_session)
    kinds = [
        "alt_text" if row["best_caption"] == row["alt_text"] else "recaption" for row in rows if row["best_caption"]
    ]
    assert kinds.count("alt_text") >= 3
    assert kinds.count("recaption") >= 3
    assert 3 <= selection["num_kept"] < NUM_ROWS
