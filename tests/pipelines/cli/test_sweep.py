"""`winnow sweep` as it is typed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curate.store import Pool
from pipelines.cli import app, sweep
from tests.curate.pool_builder import annotated_pool

runner = CliRunner()
assert sweep.app is app


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return annotated_pool(tmp_path_factory.mktemp("sweep-cli") / "pool")


def run(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 0, f"{result.stderr} {result.exception!r}"
    return result.stdout


def points(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("sweep", *arguments, "--json"))["points"]
    return found


def test_every_printed_command_keeps_what_the_sweep_counted(pool: Pool) -> None:
    arguments = ["--pool", pool.root, "b32.clip_score > {0.05,1}", "--top", "siglip.clip_score={0.4,0.8}"]
    arguments += ["--rule", "words=caption_num_words >= {2,4}", "--rule", "lang=caption_language = 'en'"]
    found = points(*arguments)
    assert len(found) == 8
    said = run("sweep", *arguments)
    for point in found:
        assert point["command"] in said.splitlines()
        kept = json.loads(run(*shlex.split(point["command"])[1:], "--json"))
        assert (kept["name"], kept["num_kept"]) == (point["name"], point["num_kept"])


def test_a_recipe_is_the_base(pool: Pool, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "select: {rules: {score: b32.clip_score > 9, words: caption_num_words > 1}, "
        "top: {by: b32.clip_score, fraction: 0.5, of: pool}, limit: {num_samples: 9}}\n"
    )
    arguments = ["--pool", pool.root, "--recipe", str(recipe)]
    found = points(*arguments, "--rule", "score=b32.clip_score > {0,1}", "--set", "rules.words=caption_num_words > 3")
    assert [list(point["rules"]) for point in found] == [["score", "words"]] * 2
    assert found[0]["rules"]["words"] == "caption_num_words > 3"
    # What the recipe says of the share holds for the one that is varied.
    found += points(*arguments, "--set", "rules.score=true IS NOT NULL", "--top", "b32.clip_score={0.3,0.5}")
    assert found[0]["num_kept"] > 0
    for point in found:
        kept = json.loads(run(*shlex.split(point["command"])[1:], "--json"))
        assert kept["num_kept"] == point["num_kept"] <= 9


def test_a_selection_is_the_base(pool: Pool) -> None:
    run("select", "--pool", pool.root, "--name", "mine", "--rule", "words=caption_num_words > 3", "--seed", "3")
    found = points("--pool", pool.root, "--selection", "mine", "b32.clip_score > {0,1}", "--name", "other")
    assert [point["name"] for point in found] == ["other-0", "other-1"]
    assert found[0]["rules"] == {"words": "caption_num_words > 3", "b32_clip_score": "b32.clip_score > 0"}
    assert "--seed 3" in found[0]["command"]


def test_a_table_and_a_picture_are_written(pool: Pool, tmp_path: Path) -> None:
    table, plot = tmp_path / "points.csv", tmp_path / "points.png"
    said = run("sweep", "--pool", pool.root, "row > {1,2}", "--table", str(table), "--plot", str(plot), "--by", "shard")
    assert said.splitlines()[-2:] == [str(table), str(plot)]
    assert table.read_text().startswith('"point","row > _","num_kept"')
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["row > 3"], "'row > 3' has no values in braces to try; write row > {0.2,0.3}"),
        ([], "nothing is varied; give a condition with values in braces"),
        (["row > {1,2}", "--top-of", "all"], "top_of is 'all'; it must be rules or pool"),
        (["row > {1,2}", "--rule", "row > 3"], "--rule 'row > 3' is not REASON=SQL"),
        (["--rule", "a=row > {1,2}", "--rule", "a=row < 9"], "--rule 'a=row < 9' is there twice"),
        (["row > {1,2}", "--top", "b32.clip_score=0.3"], "--top 'b32.clip_score=0.3' is not SQL={SHARE,...}"),
        (["row > {1,2}", "--plot", "x.svg"], "--plot x.svg does not end in .png"),
        (["row > {1,2}", "--plot", "POOL/none/x.png"], "folder POOL/none does not exist; make it"),
        (["row > {1,2}", "--table", "x.xlsx"], "--table x.xlsx ends in neither .parquet nor .csv"),
        (["row > {1,2}", "--recipe", "raw", "--selection", "x"], "--recipe and --selection were both given"),
        (["row > {1,2}", "--selection", "nobody"], "has no selection 'nobody'"),
        (["row > {1,2}", "--set", "a=b"], "--set changes a recipe"),
        (["row > {1,2}", "--out", "x"], "--out is about training; give --train RECIPE as well"),
        (["row > {1,2}", "--train", "demo"], "points that are trained need a folder"),
        (["b32.clip_scores > {1,2}"], "did you mean b32.clip_score"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, pool: Pool) -> None:
    result = runner.invoke(
        app, ["sweep", "--pool", pool.root, *(part.replace("POOL", pool.root) for part in arguments)]
    )
    assert result.exit_code == 2
    assert message.replace("POOL", pool.root) in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
