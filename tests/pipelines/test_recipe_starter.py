"""The recipe that `recipe new` writes: it loads, runs, and is what its editor's schema says."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from curate.executor import Executor
from curate.store import Pool
from pipelines.recipe import load_recipe, shipped_recipes
from pipelines.recipe_starter import write_starter
from pipelines.run import plan, run
from pipelines.yaml_file import read_file
from schemas.errors import InputError

# Commented keys and items of lists begin in lower case, sentences do not.
COMMENTED = re.compile(r"^# (\s*(?:[a-z_]+:|- ))", re.MULTILINE)


def test_it_runs_as_it_stands(tiny_pool: Pool, tmp_path: Path, ray_session: Executor) -> None:
    path, schema = write_starter(tmp_path / "deep" / "mine.yaml")
    assert schema == tmp_path / "deep" / "recipe.schema.json"
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    said = {step.stage: step.text for step in plan(recipe, tiny_pool.root, str(tmp_path / "out"))}
    assert list(said) == ["download", "annotate", "select", "build"]
    starter = load_recipe("starter").model_copy(update={"name": "mine"})
    assert recipe.annotate == starter.annotate
    assert recipe.select is not None
    assert starter.select is not None
    assert recipe.select.rules == starter.select.rules
    report = run(recipe, tiny_pool.root, str(tmp_path / "out"), executor=ray_session)
    assert (Path(report.dataset) / "index.json").exists()


@pytest.mark.parametrize("name", [*shipped_recipes(), "datacomp-clip30 datacomp-scale-medium"])
def test_it_is_valid_on_any_base_and_with_every_comment_taken_off(name: str, tmp_path: Path) -> None:
    bases = name.split()
    path, schema = write_starter(tmp_path / "mine.yaml", bases)
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=recipe.schema.json"
    validator = Draft7Validator(json.loads(schema.read_text()))
    assert [error.message for error in validator.iter_errors(read_file(path).value)] == []
    loaded, last = load_recipe(path), load_recipe(bases[-1])
    assert loaded.train == last.train
    assert [p for p, value in loaded.parameters.items() if value is None] == [
        p for base in bases for p, value in load_recipe(base).parameters.items() if value is None
    ]
    head, line, body = text.partition("\nextends:")
    path.write_text(head + line + COMMENTED.sub(r"\1", body))
    bare = load_recipe(path)
    assert bare.train is not None
    assert bare.evaluate is not None
    assert bare.select is not None
    assert bare.select.limit is not None
    assert [error.message for error in validator.iter_errors(read_file(path).value)] == []


def test_two_bases_are_laid_on_each_other(tmp_path: Path) -> None:
    path, _ = write_starter(tmp_path / "mine.yaml", ["datacomp-clip30", "datacomp-scale-xlarge"])
    recipe = load_recipe(path)
    assert [call.name for call in recipe.annotate] == ["clip_score"]
    assert recipe.train is not None
    assert (recipe.train.model, recipe.train.batch_size, recipe.train.beta2) == ("vit-l-14", 90_112, 0.95)
    assert "Model: a CLIP" in path.read_text()


def test_a_base_of_ones_own_is_named_from_where_the_recipe_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base.yaml").write_text("extends: raw\nselect: {rules: {mine: 1 = 1}}")
    monkeypatch.chdir(tmp_path)
    path, _ = write_starter(Path("deep/mine.yaml"), ["base.yaml"])
    assert "extends: ../base.yaml\n" in path.read_text()
    recipe = load_recipe(path)
    assert recipe.select is not None
    assert list(recipe.select.rules) == ["mine"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path, schema = write_starter(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match=r"mine\.yaml exists; give another path"):
        write_starter(path)
    write_starter(tmp_path / "other.yaml")  # the schema is the same one
    schema.write_text("{}")
    with pytest.raises(InputError, match=r"recipe\.schema\.json exists and is not a schema that Winnow wrote"):
        write_starter(tmp_path / "third.yaml")
    assert not (tmp_path / "third.yaml").exists()
    with pytest.raises(InputError, match=r"mine is no recipe's name; end it with \.yaml"):
        write_starter(tmp_path / "mine")
    with pytest.raises(InputError, match=r"no recipe is called 'startr'; did you mean 'starter'\?"):
        write_starter(tmp_path / "new" / "fourth.yaml", ["startr"])
    assert not (tmp_path / "new").exists()
