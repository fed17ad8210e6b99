"""The JSON Schema of recipes, for editors that complete and check YAML by one: made of the classes that read recipes, operators included.

It accepts what `load_recipe` accepts, but for two things that a schema of one file cannot tell: whether what a recipe leaves out is in the
one it extends, and whether SQL is right.
"""

import math
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from curate.operator import Operator, discover
from pipelines.fields import Setting, read_settings, settings_class
from pipelines.recipe import Recipe, shipped_recipes
from train import losses
from train.config import MODELS

# yaml-language-server knows this draft in every version.
DIALECT = "http://json-schema.org/draft-07/schema#"
SCHEMA_FILE = "recipe.schema.json"
_STAND_IN = "stand_in"
_REF = "#/definitions/{model}"

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """Return the schema; the same for the same code, so that a file of it can be compared."""
    schema = TypeAdapter(Recipe).json_schema(ref_template=_REF)
    definitions = {name: _settings(value) for name, value in schema.pop("$defs").items()}
    for cls in _settings_classes(Recipe):
        _describe(definitions[cls.__name__], cls)
    whole = _settings(schema)
    _describe(whole, Recipe)
    whole["properties"] = {"extends": _extends(), **whole["properties"]}
    whole["properties"]["parameters"] = schema["properties"]["parameters"] | {
        "description": whole["properties"]["parameters"].get("description", "")
    }
    definitions["OperatorCall"] = _operator_call()
    definitions["TrainConfig"]["properties"] |= _training(definitions["TrainConfig"]["properties"])
    definitions[_STAND_IN] = {
        "description": "A parameter in place of a value, ${name}; or a number with underscores between its digits.",
        "type": "string",
        "pattern": r"^(\$\{[a-z][a-z0-9_]*\}|[-+]?[0-9]+(_[0-9]+)+)$",
    }
    return {
        "$schema": DIALECT,
        "title": "Winnow recipe",
        **whole,
        "definitions": dict(sorted(definitions.items())),
    }


def _settings(schema: Schema) -> Schema:
    """Return the schema of a mapping as it stands in a recipe: parts may be left to the base, and a parameter may stand for a value."""
    kept = {key: value for key, value in schema.items() if key in {"type", "additionalProperties", "properties"}}
    kept["description"] = schema.get("description", "").partition("\n")[0]
    kept["properties"] = {name: _value(value) for name, value in schema.get("properties", {}).items()}
    return kept


def _value(schema: Schema) -> Schema:
    """Return the schema of a value in the older dialect, with stand-ins where the value is no text."""
    found = {key: value for key, value in schema.items() if key != "title"}
    default = found.get("default")
    # JSON has no infinity.
    if isinstance(default, dict | list) or (isinstance(default, float) and not math.isfinite(default)):
        del found["default"]
    if "prefixItems" in found:
        found["items"] = [_value(item) for item in found.pop("prefixItems")]
    elif isinstance(found.get("items"), dict):
        found["items"] = _value(found["items"])
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = _value(found["additionalProperties"])
    if "anyOf" in found:
        found["anyOf"] = [_value(option) for option in found["anyOf"]]
    if found.get("type") in {"integer", "number", "boolean"}:
        outside: Schema = {key: found.pop(key) for key in ("default", "description") if key in found}
        return {"anyOf": [found, _ref(_STAND_IN)], **outside}
    return found


def _describe(schema: Schema, cls: type) -> None:
    """Give every key the meaning that is written at the field of the class."""
    for setting in read_settings(cls):
        inner = settings_class(setting.kind)
        text = setting.help or ((inner.__doc__ or "").partition("\n")[0] if inner else "")
        if text and setting.name in schema["properties"]:
            # A reference has no siblings in this dialect.
            found = schema["properties"][setting.name]
            schema["properties"][setting.name] = ({"allOf": [found]} if "$ref" in found else found) | {
                "description": text
            }


def _settings_classes(cls: type) -> list[type]:
    found = []
    for setting in read_settings(cls):
        inner = settings_class(setting.kind)
        if inner is not None and not issubclass(inner, Operator):
            found += [inner, *_settings_classes(inner)]
    return found


def _extends() -> Schema:
    name = {
        "type": "string",
        "anyOf": [{"enum": list(shipped_recipes())}, {"pattern": r"\.ya?ml$"}],
    }
    return {
        "description": "A recipe to lay this one on, shipped or a path relative to this file; of several later ones win.",
        "anyOf": [name, {"type": "array", "items": name, "minItems": 1}],
    }


def _operator_call() -> Schema:
    operators = discover()
    names = list(operators)
    text = {
        "type": "string",
        "anyOf": [{"enum": names}, {"pattern": rf"^({'|'.join(names)}):.+=.*$"}, {"pattern": r"\.py(:.+=.*)?$"}],
    }
    mapping = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {name: _operator(cls) for name, cls in operators.items()},
        "patternProperties": {r"\.py$": {"type": ["object", "null"]}},
        "additionalProperties": False,
    }
    spelled = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
    return {
        "description": "An operator and its parameters: `name`, or `{name: {key: value}}`.",
        "anyOf": [text, mapping, spelled],
    }


def _operator(cls: type[Operator]) -> Schema:
    """Return the schema of an operator's parameters; lists are replaced, never merged, so that all that are needed must be there."""
    settings = read_settings(cls)
    required = [setting.name for setting in settings if setting.is_required]
    return {
        "description": (cls.__doc__ or "").partition("\n")[0],
        "type": "object" if required else ["object", "null"],
        "properties": {setting.name: _parameter(setting) for setting in settings},
        "patternProperties": {r"^bind\.": {"type": "string"}},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _parameter(setting: Setting) -> Schema:
    schema = _value(_kind(setting.kind))
    described = {"description": setting.help} if setting.help else {}
    plain = isinstance(setting.default, bool | int | str) or (
        isinstance(setting.default, float) and math.isfinite(setting.default)
    )
    return {**schema, **described, **({"default": setting.default} if plain else {})}


@cache
def _kind(kind: Any) -> Schema:
    """Return pydantic's schema of a type; operators have few, and each costs a millisecond."""
    schema: Schema = TypeAdapter(kind).json_schema(ref_template=_REF)
    return schema


def _training(properties: Mapping[str, Schema]) -> Schema:
    """Return the keys of a training whose values have names: models and losses."""
    setting = properties["losses"]["additionalProperties"]
    names = sorted(module.name for module in pkgutil.iter_modules(losses.__path__))
    return {
        "model": {"description": properties["model"].get("description", ""), "enum": [*MODELS]},
        "losses": {
            "description": properties["losses"].get("description", ""),
            "type": "object",
            "minProperties": 1,
            "properties": dict.fromkeys(names, setting),
            "additionalProperties": False,
        },
    }


def _ref(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}
