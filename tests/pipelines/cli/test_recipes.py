"""The commands about recipes, as a person types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.recipe import load_recipe, shipped_recipes
from pipelines.recipe_schema import recipe_schema
from tests.pool import make_pool

runner = CliRunner()


def test_the_list_has_every_recipe() -> None:
    found = {entry["name"]: entry for entry in json.loads(runner.invoke(app, ["recipes", "--json"]).stdout)}
    assert list(found) == list(shipped_recipes())
    assert found["semdedup"]["paper"] == "SemDeDup, Abbas et al. 2023, arXiv 2303.09540"
    text = runner.invoke(app, ["recipes"]).stdout
    for name in ("diht", "cit", "clipcov", "dfn", "datacompdr", "nlip", "negclip", "datacomp-scale-xlarge"):
        assert name in text


def test_a_new_recipe_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pool(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["recipe", "new"])
    assert (result.exit_code, result.stdout) == (0, "recipe.yaml\nrecipe.schema.json\n")
    dry = runner.invoke(app, ["run", "recipe.yaml", "--dry-run"])
    assert dry.exit_code == 0, dry.stderr
    assert "annotate: to do: image_stats 2 of 2 shards" in dry.stdout
    lacking = runner.invoke(app, ["recipe", "new", "clip.yaml", "--extends", "t-mars"])
    assert lacking.exit_code == 0
    dry = runner.invoke(app, ["run", "clip.yaml", "--dry-run"])
    assert "recipe 'clip' needs model; give --set parameters.model=VALUE" in dry.stderr
    again = runner.invoke(app, ["recipe", "new"])
    assert (again.exit_code, again.stderr) == (
        2,
        "error: recipe.yaml exists; give another path, or remove it\n",
    )


def test_a_recipe_written_out_is_that_recipe(tmp_path: Path) -> None:
    result = runner.invoke(app, ["recipe", "show", "datacomp-basic", "--set", "build.shard_size=7"])
    (tmp_path / "whole.yaml").write_text(result.stdout)
    assert load_recipe(tmp_path / "whole.yaml") == load_recipe("datacomp-basic", ["build.shard_size=7"])
    assert "#   paper     DataComp" in result.stdout
    assert "extends" not in result.stdout
    wrong = runner.invoke(app, ["recipe", "show", "semdedupp"])
    assert "no recipe is called 'semdedupp'; did you mean 'semdedup'?" in wrong.stderr


def test_the_schema_is_printed() -> None:
    assert json.loads(runner.invoke(app, ["recipe", "schema"]).stdout) == json.loads(json.dumps(recipe_schema()))
