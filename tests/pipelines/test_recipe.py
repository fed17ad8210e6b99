"""Recipes: what they say, what they refuse, and where the error points."""

from pathlib import Path

import pytest

from curate.selection import Limit, Top
from pipelines.recipe import Recipe, load_recipe, load_section, shipped_recipes
from schemas.errors import InputError, RecipeError
from train.config import TrainConfig

WHOLE = """\
name: whole
input: {urls: [a.parquet, b.csv]}
download:
  image_size: 128
  resize_mode: no
annotate:
  - image_stats
  - language: {label: lang}
  - language:label=other
select:
  rules:
    words: caption_num_words >= 3
    no: "true"
  top: {by: image_entropy_bits, fraction: 0.3}
  captions: {alt_text: 2}
build: {shard_size: 50}
train: {model: vit-tiny, lr: 1e-3, crop_scale: [0.5, 1]}
evaluate: {data: [dataset]}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_recipe_is_the_librarys_own_settings(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    assert recipe.name == "whole"
    assert recipe.input.urls == ("a.parquet", "b.csv")
    assert (recipe.download.image_size, recipe.download.resize_mode) == (128, "no")
    operators = [call.build() for call in recipe.annotate]
    assert [(operator.name, operator.sql_name) for operator in operators] == [
        ("image_stats", "image_stats"),
        ("language", "lang"),
        ("language", "other"),
    ]
    assert recipe.select is not None
    assert recipe.select.name == "whole"
    assert list(recipe.select.rules) == ["words", "no"]
    assert recipe.select.top == Top(by="image_entropy_bits", fraction=0.3)
    assert recipe.train == TrainConfig(model="vit-tiny", lr=1e-3, crop_scale=(0.5, 1.0))


def test_the_file_names_the_recipe_where_it_does_not(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "select: {}", "my-set.yaml"))
    assert recipe.name == "my-set"
    assert recipe.select is not None
    assert recipe.select.name == "my-set"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nanotate: []", "r.yaml:2: unknown key 'anotate'; did you mean 'annotate'?"),
        ("download:\n  image_sise: 3", "r.yaml:2: unknown key 'image_sise'; did you mean 'image_size'?"),
        ("select:\n  top:\n    bye: x\n    fraction: 1", "r.yaml:3: unknown key 'bye'; did you mean 'by'?"),
        ("build:\n  zzz: 1", "r.yaml:2: unknown key 'zzz'; known keys: shard_size, view, image_format, blur"),
        (
            "train:\n\n  lr: fast",
            "r.yaml:3: train.lr should be a valid number, unable to parse string as a number, got 'fast'",
        ),
        ("download:\n  retries: 1.5", "r.yaml:2: download.retries should be a valid integer"),
        ("input:\n  urls: a.csv", "r.yaml:2: input.urls should be a valid tuple, got 'a.csv'"),
        ("select:\n  rules: [a]", "r.yaml:2: select.rules should be a valid mapping, got ['a']"),
        ("name: 3", "r.yaml:1: name should be a valid string, got 3"),
        ("select:\n  top: {by: x}", "r.yaml:2: select.top.fraction is required"),
        ("select: {}\nbuild: {}\ntrain: {}\nevaluate: {}", "r.yaml:4: evaluate.data is required"),
        ("build:\n  shard_size: 0", "r.yaml:1: build: build shard_size is 0; it must be at least 1"),
        ("annotate:\n- image_stats\n- image_stat", "r.yaml:3: no operator is called 'image_stat' (did you mean"),
        ("annotate:\n- image_stats: {deep: 1}", "r.yaml:2: operator 'image_stats' has no parameter 'deep'"),
        ("annotate:\n- {image_stats: {}, language: {}}", "r.yaml:2: annotate.0: an operator is `name` or"),
        ("annotate: [language, language]", "two operators have one name in SQL"),
        ("build: {}", "the section 'build' needs the section 'select'"),
        ("select: {}\ntrain: {}", "the section 'train' needs the section 'build'"),
        ("train: {model: vit-tinny}", "r.yaml:1: train: unknown model 'vit-tinny' (did you mean 'vit-tiny'?)"),
        ("name: a\nname: b", "r.yaml:2: key 'name' is written twice"),
        ("name: !env HOME", "r.yaml:1: tag '!env' is not supported"),
        ("extends: nothing", "r.yaml:1: extends: no recipe is called 'nothing'; shipped recipes: "),
        (
            "extends: [raw, 3]",
            "r.yaml:1: extends names a recipe, or a list of recipes of which later ones win, got ['raw', 3]",
        ),
        ("extends: gone.yaml", "r.yaml:1: extends: recipe gone.yaml does not exist"),
    ],
)
def test_errors_point_at_the_line(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, text, "r.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert message in str(caught.value)


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, "buid: {}\nselect: {}\ntrane: {}"))
    assert [line.rpartition("recipe.yaml")[2] for line in str(caught.value).splitlines()] == [
        ":1: unknown key 'buid'; did you mean 'build'?",
        ":3: unknown key 'trane'; did you mean 'train'?",
    ]


def test_environment_variables_are_not_expanded(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "input: {urls: ['$HOME/a.csv']}")).input.urls == ("$HOME/a.csv",)


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, WHOLE, "base.yaml")
    (tmp_path / "deep").mkdir()
    child = (
        "extends: ../base.yaml\nannotate: [caption_stats]\nselect: {rules: {more: 1 = 1}}\ntrain: null\nevaluate: null"
    )
    recipe = load_recipe(write(tmp_path / "deep", child, "child.yaml"))
    assert [call.name for call in recipe.annotate] == ["caption_stats"]
    assert recipe.select is not None
    assert list(recipe.select.rules) == ["words", "no", "more"]
    assert recipe.train is None
    assert recipe.download.image_size == 128
    assert recipe.name == "whole"


def test_an_error_in_a_base_points_into_the_base(tmp_path: Path) -> None:
    write(tmp_path, "name: x\nbuilt: {}", "base.yaml")
    with pytest.raises(RecipeError, match=r"base\.yaml:2: unknown key 'built'"):
        load_recipe(write(tmp_path, "extends: base.yaml\nselect: {}"))


def test_circles_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml", "a.yaml")
    write(tmp_path, "extends: a.yaml", "b.yaml")
    with pytest.raises(RecipeError, match=r"in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_recipe(tmp_path / "a.yaml")


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    recipe = load_recipe(
        path, ["train.epochs=2", "select.limit={num_samples: 7}", "annotate.0=caption_stats", "name=other"]
    )
    assert recipe.train is not None
    assert recipe.train.epochs == 2.0
    assert recipe.select is not None
    assert recipe.select.limit == Limit(num_samples=7)
    assert recipe.select.name == "other"
    assert recipe.annotate[0].name == "caption_stats"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["train.epoch=2"])
    assert str(caught.value) == "--set train.epoch=2: unknown key 'epoch'; did you mean 'epochs'?"


def test_one_section_alone(tmp_path: Path) -> None:
    assert load_section("train", "", ["model=vit-tiny", "train.batch_size=8"]) == TrainConfig(
        model="vit-tiny", batch_size=8
    )
    path = write(tmp_path, WHOLE)
    assert load_section("train", path, ["lr=1"]) == TrainConfig(model="vit-tiny", lr=1.0, crop_scale=(0.5, 1.0))
    with pytest.raises(InputError, match="has no section 'train'"):
        load_section("train", "raw")


def test_unknown_recipes() -> None:
    with pytest.raises(InputError, match=r"no recipe is called 'startr'; did you mean 'starter'\?"):
        load_recipe("startr")
    with pytest.raises(InputError, match=r"recipe none\.yaml does not exist; shipped recipes: .*starter"):
        load_recipe("none.yaml")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_written_out_and_read_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    again = load_recipe(write(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert shipped_recipes()[name].read_text().startswith("# ")


def test_input_is_replaced(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE)).with_input(["c.csv"])
    assert recipe.input.urls == ("c.csv",)
