"""YAML with positions: plain values, and the file and line each came from, so that an error can point at it.

Stricter than YAML 1.1, where it surprises: `no` and `on` are strings, `1e-3` is a number, a repeated key, a tag (`!x`) and an alias
(`*x`) are errors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from schemas.errors import RecipeError

Value = bool | int | float | str | list["Value"] | dict[str, "Value"] | None
KeyPath = tuple[str | int, ...]

_PLAIN_TAGS = ("!!null", "!!bool", "!!int", "!!float", "!!str", "!!seq", "!!map")
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file, or a flag of the command line (line 0)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Tree:
    """A mapping read from YAML, and the place of every key and list item in it; the root's place is that of `()`."""

    value: dict[str, Value]
    places: Mapping[KeyPath, Place]

    def place(self, path: KeyPath) -> Place:
        """Return the place of a key, or of its nearest parent that was written."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]


def read_file(path: Path) -> Tree:
    """Read a YAML file."""
    try:
        return read_tree(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}:1: not UTF-8 text: {error}") from error


def read_tree(text: str, file: str) -> Tree:
    """Read one YAML mapping; `file` names it in errors. An empty file is an empty mapping."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{file}:{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{file}:1: not YAML: {error}") from error
    root = Place(file, 1)
    if node is None:
        return Tree({}, {(): root})
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{Place(file, _line(node))}: expected `key: value` lines, found {_describe(node)}")
    places: dict[KeyPath, Place] = {}
    value = _Reader(file, places).mapping(node, ())
    places[()] = root
    return Tree(value, places)


def merge(base: Tree, over: Tree) -> Tree:
    """Lay `over` on `base`: mappings are merged key by key, anything else (lists too) is replaced."""
    places = dict(base.places)

    def lay(below: dict[str, Value], above: dict[str, Value], path: KeyPath) -> dict[str, Value]:
        merged = dict(below)
        for key, value in above.items():
            here = (*path, key)
            old = below.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                merged[key] = lay(old, value, here)
                places[here] = over.place(here)
            else:
                merged[key] = value
                _replace_places(places, over.places, here)
        return merged

    merged = lay(base.value, over.value, ())
    places[()] = over.place(())
    return Tree(merged, places)


def set_value(tree: Tree, assignment: str) -> Tree:
    """Apply one `a.b=value` of the command line; the value is read as YAML, a number in the path indexes an existing list."""
    name, equals, text = assignment.partition("=")
    file = f"--set {assignment}"
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{file}: expected KEY=VALUE, for example --set train.epochs=3")
    place = Place(file, 0)
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: {text!r} is not a YAML value; put it in quotes") from error
    value = None if node is None else _Reader(file, {}).value(node, ())
    places = dict(tree.places)
    path, merged = _assign(tree.value, keys, value, place)
    assert isinstance(merged, dict)
    for depth in range(1, len(path)):
        places.setdefault(path[:depth], place)
    for old in [p for p in places if p[: len(path)] == path]:
        del places[old]
    places[path] = place
    return Tree(merged, places)


def dump(value: object) -> str:
    """Write plain values as YAML that `read_tree` reads back to the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Reader:
    """Turns composed nodes into values and records where they lie."""

    def __init__(self, file: str, places: dict[KeyPath, Place]) -> None:
        self._file = file
        self._places = places
        self._seen: set[int] = set()

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = Place(self._file, _line(key_node))
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{place}: a key must be a plain word, found {_describe(key_node)}")
            key = key_node.value
            if key in result:
                first = self._places[(*path, key)]
                raise RecipeError(f"{place}: key {key!r} is written twice; the first is in line {first.line}")
            self._places[(*path, key)] = place
            result[key] = self.value(value_node, (*path, key))
        return result

    def value(self, node: yaml.Node, path: KeyPath) -> Value:
        place = Place(self._file, _line(node))
        if id(node) in self._seen:
            raise RecipeError(f"{place}: aliases (`*name`) are not supported; write the value again, or use `extends:`")
        self._seen.add(id(node))
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        if tag not in _PLAIN_TAGS:
            raise RecipeError(f"{place}: tag {tag!r} is not supported; write a plain value")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items: list[Value] = []
            for index, item in enumerate(node.value):
                self._places[(*path, index)] = Place(self._file, _line(item))
                items.append(self.value(item, (*path, index)))
            return items
        return _scalar(node)


class _Dumper(yaml.SafeDumper):
    """Quotes only what `read_tree` would not read back as text."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (the base class asks about each value)
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Odd line breaks and control characters survive only as escapes.
    style = None if isinstance(_plain(text), str) and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _scalar(node: yaml.Node) -> Value:
    text: str = node.value
    # Quoted and block scalars are text whatever they look like.
    return text if getattr(node, "style", None) else _plain(text)


def _plain(text: str) -> bool | int | float | str | None:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _assign(value: Value, keys: list[str], new: Value, place: Place) -> tuple[KeyPath, Value]:
    if not keys:
        return (), new
    key, rest = keys[0], keys[1:]
    if isinstance(value, list):
        if not key.isdigit() or int(key) >= len(value):
            raise RecipeError(f"{place}: {key!r} is not an item of a list of {len(value)}")
        index = int(key)
        path, item = _assign(value[index], rest, new, place)
        return (index, *path), [*value[:index], item, *value[index + 1 :]]
    if value is not None and not isinstance(value, dict):
        raise RecipeError(f"{place}: {key!r} is inside a plain value ({value!r}), which has no keys")
    below = value or {}
    path, item = _assign(below.get(key), rest, new, place)
    return (key, *path), {**below, key: item}


def _replace_places(places: dict[KeyPath, Place], over: Mapping[KeyPath, Place], path: KeyPath) -> None:
    for old in [p for p in places if p[: len(path)] == path]:
        del places[old]
    places.update({p: place for p, place in over.items() if p[: len(path)] == path})


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"the value {node.value!r}"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
