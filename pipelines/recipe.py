"""A recipe: the full settings of a run, from the URL list to the evaluated model, as YAML or as a Python object.

The sections are the library's own settings classes, so a key is defined once and means the same in a flag, a recipe and in Python:

    name: mine
    extends: starter            # a shipped recipe, or a path relative to this file, or several: mappings are merged, lists replaced
    download: {image_size: 256}
    annotate: [image_stats, {clip_score: {model: openai/clip-vit-base-patch32, label: b32}}]
    select: {rules: {words: caption_num_words >= 3}, weight: image_entropy}
    build: {shard_size: 1000}
    train: {model: vit-tiny, epochs: 5}
    evaluate: {data: [dataset]}

Environment variables are not expanded, and nothing in a recipe is executed except SQL and the operators it names.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from curate.build import BuildConfig
from curate.fetch.config import DownloadConfig
from curate.operator import Operator
from curate.parse import make_operator, parse_operator
from curate.selection import Selection
from pipelines.fields import read_settings, settings_class
from pipelines.yaml_file import KeyPath, Place, Tree, Value, dump, merge, read_file, set_value
from schemas.errors import InputError, RecipeError
from train.config import TrainConfig
from train.evaluation import EvaluationOptions

_PARAMETER = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")
_STRICT_KEYS = ConfigDict(extra="forbid", frozen=True)
# The word for the dataset that the recipe itself built, in `evaluate.data`.
OWN_DATASET = "dataset"
# A stage that works on what another one made.
_NEEDS = {"build": "select", "train": "build", "evaluate": "train"}


class InputSection(BaseModel):
    """Where the pairs come from."""

    model_config = _STRICT_KEYS

    urls: tuple[str, ...] = ()  # URL lists: paths, globs or fsspec URLs; empty: the pool as it is


class OperatorCall(BaseModel):
    """An operator and its parameters: `name`, or `{name: {key: value}}`."""

    model_config = _STRICT_KEYS

    name: str
    parameters: Mapping[str, object] = {}

    def build(self) -> Operator:
        """Return the operator; `NAME:key=value,...` is understood as on the command line."""
        return make_operator(self.name, self.parameters) if self.parameters else parse_operator(self.name)


@dataclass(frozen=True, kw_only=True)
class EvaluateSection(EvaluationOptions):
    """What the trained model is evaluated on, and what is measured.

    EvaluateSection(data=("dataset", "eval/wds_imagenet1k_test"))
    EvaluateSection(data=("eval",), probe=True, shots=(1, 4), group_column="source")
    """

    data: tuple[str, ...]  # datasets, folders or folders of folders; `dataset` is the one this recipe built


def _read_call(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and set(value) - {"name", "parameters"}:
        if len(value) != 1:
            raise ValueError(f"an operator is `name` or `{{name: {{key: value}}}}`, got the keys {sorted(value)}")
        ((name, parameters),) = value.items()
        return {"name": name, "parameters": {} if parameters is None else parameters}
    return value


class Recipe(BaseModel):
    """Every setting of a run; a section that is absent (or `null`) is a stage that is left out."""

    model_config = _STRICT_KEYS

    name: str  # of the selection, the dataset and the run
    parameters: Mapping[
        str, str | int | float | None
    ] = {}  # ${name} elsewhere stands for its value; null: to be given with --set
    input: InputSection = InputSection()
    download: DownloadConfig = DownloadConfig()
    annotate: tuple[Annotated[OperatorCall, BeforeValidator(_read_call)], ...] = ()  # operators, in any order
    select: Selection | None = None
    build: BuildConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateSection | None = None

    def check(self) -> None:
        """Raise `InputError` where a stage lacks the one whose result it works on."""
        for stage, needed in _NEEDS.items():
            if getattr(self, stage) is not None and getattr(self, needed) is None:
                raise InputError(f"the section {stage!r} needs the section {needed!r}, which is absent")
        if len({call.build().sql_name for call in self.annotate}) < len(self.annotate):
            raise InputError("two operators have one name in SQL; give one of them another with label: NAME")

    def check_parameters(self) -> None:
        """Raise `InputError` where a parameter has no value: its recipe can be looked at, and selected by, but not run."""
        lacking = [name for name, value in self.parameters.items() if value is None]
        if lacking:
            flags = " ".join(f"--set parameters.{name}=VALUE" for name in lacking)
            raise InputError(f"recipe {self.name!r} needs {', '.join(lacking)}; give {flags}")

    def with_input(self, urls: Sequence[str]) -> "Recipe":
        """Return the recipe with other URL lists."""
        return self.model_copy(update={"input": InputSection(urls=tuple(urls))})

    def to_yaml(self) -> str:
        """Return the recipe with every default written out; `load_recipe` reads it back to an equal recipe."""
        content = self.model_dump(mode="json")
        content["annotate"] = [
            {call.name: dict(call.parameters)} if call.parameters else call.name for call in self.annotate
        ]
        return dump(content)


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or shipped name, lay `overrides` ("train.epochs=3") on it, and check every key.

    Raises `RecipeError` with the file, the line and the nearest right name for every key that is wrong.
    """
    path = _find(str(source))
    tree = _override(_resolve(path, ()), overrides)
    recipe = _validate(tree, default_name=path.stem)
    try:
        recipe.check()
    except InputError as error:
        raise RecipeError(f"{tree.place(())}: {error}") from error
    return recipe


def load_section(section: str, source: str, overrides: Sequence[str] = ()) -> object:
    """Return one section of a recipe, or of no recipe at all where `source` is empty; overrides may leave the section's name out."""
    tree = _resolve(_find(source), ()) if source else Tree({}, {(): Place("command line", 0)})
    if source and section not in tree.value:
        raise InputError(f"recipe {source} has no section {section!r}")
    names = [text if text.startswith(f"{section}.") else f"{section}.{text}" for text in overrides]
    tree = _override(Tree({section: {}, **tree.value}, tree.places), names)
    return getattr(_validate(tree, default_name=Path(source).stem or section), section)


def has_section(section: str, source: str) -> bool:
    """Tell whether a recipe, with what it extends, has a section."""
    return _resolve(_find(source), ()).value.get(section) is not None


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with Winnow, by name."""
    folder = Path(str(resources.files("pipelines"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find(source: str) -> Path:
    if Path(source).suffix in {".yaml", ".yml"}:
        if not Path(source).is_file():
            raise InputError(f"recipe {source} does not exist; shipped recipes: {', '.join(shipped_recipes())}")
        return Path(source)
    shipped = shipped_recipes()
    if source in shipped:
        return shipped[source]
    if Path(source).is_file():
        return Path(source)
    raise InputError(
        f"no recipe is called {source!r}{_suggest(source, list(shipped), 'shipped recipes')}, or give the path of a .yaml file"
    )


def _resolve(path: Path, children: tuple[Path, ...]) -> Tree:
    """Read a recipe and everything it extends, the child laid on its base."""
    if path.resolve() in [child.resolve() for child in children]:
        chain = " -> ".join(str(child) for child in (*children, path))
        raise RecipeError(f"{children[-1]}:1: recipes extend each other in a circle: {chain}")
    tree = read_file(path)
    if "extends" not in tree.value:
        return tree
    bases = tree.value["extends"]
    place = tree.place(("extends",))
    names = bases if isinstance(bases, list) else [bases]
    if not names or not all(isinstance(name, str) for name in names):
        raise RecipeError(
            f"{place}: extends names a recipe, or a list of recipes of which later ones win, got {bases!r}"
        )
    merged: Tree | None = None
    for name in (str(name) for name in names):
        beside = path.parent / name
        try:
            found = beside if Path(name).suffix in {".yaml", ".yml"} and beside.is_file() else _find(name)
        except InputError as error:
            raise RecipeError(f"{place}: extends: {error}") from error
        base = _resolve(found, (*children, path))
        merged = merge(merged, base) if merged else base
    assert merged is not None
    merged = merge(merged, tree)
    value = {key: item for key, item in merged.value.items() if key != "extends"}
    return Tree(value, {key: at for key, at in merged.places.items() if key != ("extends",)})


def _override(tree: Tree, overrides: Sequence[str]) -> Tree:
    for assignment in overrides:
        tree = set_value(tree, assignment)
    return tree


def _validate(tree: Tree, default_name: str) -> Recipe:
    content = _fill({"name": default_name, **tree.value}, tree)
    select = content.get("select")
    if isinstance(select, dict):
        content["select"] = {"name": content["name"], **select}
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        messages = dict.fromkeys(_explain(tree, details) for details in error.errors(include_url=False))
        raise RecipeError("\n".join(messages)) from error
    for index, call in enumerate(recipe.annotate):
        _check_call(tree, index, call)
    return recipe


def _fill(content: dict[str, Value], tree: Tree) -> dict[str, Value]:
    """Return the recipe with `${name}`, where that is all of a value, replaced by the parameter; one that is null leaves it as it is."""
    parameters = content.get("parameters")
    known = parameters if isinstance(parameters, dict) else {}

    def fill(value: Value, path: KeyPath) -> Value:
        if isinstance(value, dict):
            return {key: fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or not (match := _PARAMETER.fullmatch(value)):
            return value
        if match[1] not in known:
            raise RecipeError(
                f"{tree.place(path)}: {value} names no parameter{_suggest(match[1], list(known), 'known')}"
            )
        given = known[match[1]]
        return value if given is None else given

    return {key: item if key == "parameters" else fill(item, (key,)) for key, item in content.items()}


def _explain(tree: Tree, details: ErrorDetails) -> str:
    """Return `file:line: what is wrong` for one of pydantic's errors."""
    path: KeyPath = details["loc"]
    place = tree.place(path)
    if details["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{place}: unknown key {str(path[-1])!r}{_suggest(str(path[-1]), _known_keys(path[:-1]), 'known keys')}"
    # Pydantic adds the branches of a union to the path; what the user wrote is the part that has a place.
    while path and path not in tree.places and details["type"] not in {"missing", "missing_argument"}:
        path = path[:-1]
    name = ".".join(str(key) for key in path)
    if details["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"{place}: {name} is required"
    message = (
        details["msg"].removeprefix("Value error, ").replace("dictionary", "mapping").replace(" after validation", "")
    )
    if message.startswith("Input "):
        return f"{place}: {name} {message.removeprefix('Input ')}, got {details['input']!r}"
    return f"{place}: {name}: {message}" if name else f"{place}: {message}"


def _known_keys(path: KeyPath) -> list[str]:
    """Return the keys that may stand in the mapping at `path`."""
    cls: type = Recipe
    for key in path:
        found = [setting for setting in read_settings(cls) if setting.name == key]
        inner = settings_class(found[0].kind) if found else None
        if inner is None:
            return []
        cls = inner
    names = [setting.name for setting in read_settings(cls)]
    return [*names, "extends"] if cls is Recipe else names


def _suggest(name: str, known: Sequence[str], title: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {title}: {', '.join(known)}" if known else ""


def _check_call(tree: Tree, index: int, call: OperatorCall) -> None:
    """Raise unless the operator exists and takes those parameters."""
    try:
        call.build()
    except InputError as error:
        raise RecipeError(f"{tree.place(('annotate', index))}: {error}") from error
