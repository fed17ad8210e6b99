"""The JSON Schema of recipes accepts what Winnow accepts, and refuses what it refuses."""

import json

import pytest
from jsonschema import Draft7Validator

from curate.operator import discover
from pipelines.fields import read_settings
from pipelines.recipe import load_recipe, shipped_recipes
from pipelines.recipe_schema import recipe_schema
from pipelines.yaml_file import read_file, read_tree


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = recipe_schema()
    Draft7Validator.check_schema(schema)
    assert schema["$schema"].startswith("http://json-schema.org/draft-07")
    return Draft7Validator(json.loads(json.dumps(schema, allow_nan=False)))  # NaN and Infinity are no JSON


def errors(validator: Draft7Validator, text: str) -> list[str]:
    return [error.message for error in validator.iter_errors(read_tree(text, "r.yaml").value)]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_short_and_written_out(name: str, validator: Draft7Validator) -> None:
    assert [error.message for error in validator.iter_errors(read_file(shipped_recipes()[name]).value)] == []
    assert errors(validator, load_recipe(name).to_yaml()) == []


@pytest.mark.parametrize(
    "text",
    [
        "extends: starter",
        "extends: [sane, ../mine.yaml]",
        "train: null",
        "train: {samples_seen: 20_000, crop_scale: [0.5, 1], lr: 1e-3}",
        "parameters: {t: null, model: x, n: 3}\nannotate: [{concept_balance: {t: '${t}'}}]",
        "annotate: [image_stats, 'language:label=lang', my_operator.py, 'my_operator.py:x=1', {my.py: {x: 1}}]",
        "annotate: [{clip_score: {model: x, label: b32, bind: {alt_text: a.b}, bind.image: c}}, {image_stats: null}]",
        "annotate: [{name: language, parameters: {label: x}}]",
        "select: {top: {fraction: 0.2}}",
        "train: {losses: {info_nce: 1.0, coca: {weight: 2.0, layers: 3}}}",
        "select: {rules: {any reason: 'x > 1'}, captions: {alt_text: 1}}",
    ],
)
def test_what_is_right(text: str, validator: Draft7Validator) -> None:
    assert errors(validator, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "anotate: []",
        "extends: nothing",
        "extends: []",
        "name: 3",
        "download: {image_sise: 3}",
        "download: {image_size: big}",
        "download: {resize_mode: squeeze}",
        "input: {urls: a.csv}",
        "annotate: [image_stat]",
        "annotate: [{image_stats: {deep: 1}}]",
        "annotate: [{clip_score: {}}]",
        "annotate: [{image_stats: {}, language: {}}]",
        "annotate: [{near_dedup: {max_distance: near}}]",
        "select: {top: {bye: x}}",
        "select: {rules: [a]}",
        "train: {model: vit-tinny}",
        "train: {losses: {info_nec: 1}}",
        "train: {crop_scale: [0.5]}",
        "train: {sampling: {batches: {size: many}}}",
        "evaluate: {data: dataset}",
    ],
)
def test_what_is_wrong(text: str, validator: Draft7Validator) -> None:
    assert errors(validator, text)


def test_it_has_every_operator_with_its_parameters_and_their_meanings() -> None:
    schema = recipe_schema()
    operators = schema["definitions"]["OperatorCall"]["anyOf"][1]["properties"]
    assert set(operators) == set(discover())
    for name, cls in discover().items():
        settings = read_settings(cls)
        assert set(operators[name]["properties"]) == {setting.name for setting in settings}
        assert operators[name].get("required", []) == [setting.name for setting in settings if setting.is_required]
    assert operators["cluster"]["properties"]["iterations"]["description"] == "of k-means"
    assert operators["cluster"]["properties"]["iterations"]["default"] == 20
    assert "peak" in schema["definitions"]["TrainConfig"]["properties"]["lr"]["description"]
    assert json.dumps(recipe_schema()) == json.dumps(schema)
