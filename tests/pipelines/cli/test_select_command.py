"""A printed command makes the selection that it stands for, to the fingerprint."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.select import Limit, Mix, PerGroup, Selection, Top, select
from curate.selection import read_selection
from curate.store import Pool
from pipelines.cli import app
from pipelines.cli.select_command import select_command
from pipelines.recipe import load_section
from tests.curate.pool_builder import annotated_pool

RULES = {"lang": "caption_language = 'en'", "odd": "alt_text <> 'it''s: # \"quoted\" {1} \u732b' AND row >= 0"}
SELECTIONS = {
    "plain": Selection(name="plain"),
    "rules": Selection(name="rules", rules=RULES, weight="1 + row", captions={"alt_text": 0.25, "recaption": 0.75}),
    "cuts": Selection(
        name="cuts",
        top=Top(by="b32.clip_score", fraction=0.3),
        per_group=PerGroup(by="caption_language", num_samples=4),
        limit=Limit(num_samples=5),
        seed=7,
    ),
    "limit": Selection(name="limit", limit=Limit(num_samples=5, by="b32.clip_score")),
    "mix": Selection(name="mix", mix=Mix(by="caption_language", shares={"en": 0.5, "de": 1.0}, how="cut")),
    "top of the pool": Selection(name="pool", top=Top(by="b32.clip_score", fraction=0.3, of="pool")),
    "ordered": Selection(name="ordered", per_group=PerGroup(by="shard", num_samples=2, order="b32.clip_score")),
    "temperature": Selection(name="temperature", mix=Mix(by="caption_language", temperature=2.0)),
    "named oddly": Selection(name="named", rules={"a=b.c": "row > 1", "d": "row >= 1e-3"}),
    "lines": Selection(name="lines", rules={"long": "row > 1 -- a comment\n AND row < 9"}),
}

runner = CliRunner()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return annotated_pool(tmp_path_factory.mktemp("command") / "a pool")


def run(command: str) -> str:
    result = runner.invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.stderr
    return result.stdout.rstrip("\n").splitlines()[-1]


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_command_makes_its_selection(name: str, pool: Pool) -> None:
    selection = SELECTIONS[name]
    expected = pool.locate(select(pool, selection).folder)
    assert run(select_command(pool.root, selection)) == expected


def test_a_command_changes_what_a_recipe_says(pool: Pool, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("select: {rules: {a: row > 1, b: row > 2}, top: {by: b32.clip_score, fraction: 0.5}}\n")
    base = load_section("select", str(recipe), ["rules.b=row > 3"])
    assert isinstance(base, Selection)
    changed = replace(base, name="point", rules={"a": "row > 5", "b": "row > 3", "c": "row < 11"}, top=None)
    expected = pool.locate(select(pool, changed).folder)
    command = select_command(pool.root, changed, recipe=str(recipe), overrides=["rules.b=row > 3"])
    assert "--set 'rules.a=row > 5' --set 'rules.c=row < 11' --set top=null" in command
    assert run(command) == expected


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_read_back_from_its_settings(name: str) -> None:
    selection = SELECTIONS[name]
    assert read_selection(selection.settings()).settings() == selection.settings()
