"""A recipe to begin with: commented, laid on shipped ones, and one that loads and runs before anything in it is changed."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from curate.build import BuildConfig
from pipelines.recipe import Recipe, load_recipe, shipped_recipes
from pipelines.recipe_header import read_header
from pipelines.recipe_schema import SCHEMA_FILE, recipe_schema
from pipelines.yaml_file import dump
from schemas.errors import InputError

DEFAULT_BASE = "starter"
# Commented keys are in lower case and sentences are not: whoever takes `# ` off the first has a recipe.
_SECTIONS = {
    "select": """\
select:
  rules: {} # reason: SQL that is true for the rows to keep; a rule of the base is changed under its own name
#   top: {by: clip_score.clip_score, fraction: 0.3} # the best share by a score
#   limit: {num_samples: 1000000} # at most so many
""",
    "build": """\
build:
  shard_size: {shard_size} # samples per tar
""",
    "train": """\
# train: # with it the recipe trains a CLIP on what was built
#   model: vit-b-32
#   epochs: 10
#   batch_size: 256
#   lr: 5.0e-4
""",
    "evaluate": """\
# evaluate: # with it the model is measured; `dataset` is the one that this recipe built
#   data: [dataset]
""",
}


def write_starter(path: Path, bases: Sequence[str] = ()) -> list[Path]:
    """Write a recipe laid on `bases` (shipped names or paths; later ones win) and, beside it, the schema that its editor checks it by.

    Returns the files that were written, the recipe first. Raises `InputError` where the recipe exists, or the base does not.
    """
    if path.suffix not in {".yaml", ".yml"}:
        raise InputError(f"{path} is no recipe's name; end it with .yaml")
    schema = path.parent / SCHEMA_FILE
    if path.exists():
        raise InputError(f"{path} exists; give another path, or remove it")
    if schema.exists() and not _is_schema(schema):
        raise InputError(f"{schema} exists and is not a schema that Winnow wrote; give another folder")
    text = starter(path, bases or (DEFAULT_BASE,))
    path.parent.mkdir(parents=True, exist_ok=True)
    schema.write_text(json.dumps(recipe_schema(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return [path, schema]


def starter(path: Path, bases: Sequence[str]) -> str:
    """Return the text of a recipe that will lie at `path`."""
    names = [_as_seen_from(path.parent, base) for base in bases]
    whole = _load_together(bases)
    parts = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        "# Say here in a sentence what this recipe is for.",
        "#",
        f"#   command   winnow run {path.name} --input pairs.parquet --pool pool --out out",
        "#   measured  not measured",
        "",
        f"# Everything that is not written here is as in the base; `winnow recipe show {bases[-1]}` prints it.",
        f"extends: {names[0] if len(names) == 1 else json.dumps(names)}",
        *_parameters(bases, whole),
        "",
        "input:",
        "  urls: [] # URL lists: paths, globs or fsspec URLs; empty: --input, or the pool as it is",
        "",
        "download:",
        f"  image_size: {whole.download.image_size} # pixels, of the side that resize_mode fixes",
        "",
        "# A list takes the place of the base's, so that this one repeats it. `winnow operators` has the others.",
        *_annotate(whole),
        "",
    ]
    return "\n".join(parts) + "\n" + "\n".join(_section(name, whole) for name in _SECTIONS)


def _load_together(bases: Sequence[str]) -> Recipe:
    """Return what the bases are when they are laid on each other."""
    shipped = shipped_recipes()
    names = [base if base in shipped else str(Path(base).absolute()) for base in bases]
    for base in bases:
        load_recipe(base)  # a wrong name is told by itself, not as a line of a file that nobody wrote
    with TemporaryDirectory(prefix="winnow-recipe-") as folder:
        path = Path(folder) / "whole.yaml"
        path.write_text(dump({"extends": names}), encoding="utf-8")
        return load_recipe(path)


def _parameters(bases: Sequence[str], whole: Recipe) -> list[str]:
    """Return the parameters that have no value yet, with what the bases say they have to be."""
    lacking = [name for name, value in whole.parameters.items() if value is None]
    if not lacking:
        return []
    shipped = shipped_recipes()
    needs = [read_header(shipped[base]).needs for base in bases if base in shipped and load_recipe(base).parameters]
    lines = [f"# To be given before it runs. {need[0].upper()}{need[1:]}." for need in needs if need]
    values = [f"  {name}: null # or --set parameters.{name}=VALUE" for name in lacking]
    return ["", *lines, "parameters:", *values]


def _annotate(whole: Recipe) -> list[str]:
    if not whole.annotate:
        return ["annotate: []"]
    listed = [{call.name: dict(call.parameters)} if call.parameters else call.name for call in whole.annotate]
    return dump({"annotate": listed}).rstrip("\n").splitlines()


def _section(name: str, whole: Recipe) -> str:
    """Return a section to be filled in; of a training that the bases have, only a hint, for it holds already."""
    if name in {"train", "evaluate"} and getattr(whole, name) is not None:
        example = "lr: 5.0e-4" if name == "train" else "probe: true"
        return f"# {name}: # the base has one: keys given here change it\n#   {example}\n"
    if name == "build":
        return _SECTIONS[name].format(shard_size=(whole.build or BuildConfig()).shard_size)
    return _SECTIONS[name]


def _as_seen_from(folder: Path, base: str) -> str:
    """Return how a recipe in `folder` names a base: shipped ones by name, others by their path from there."""
    if base in shipped_recipes() or not Path(base).is_file():
        return base
    return Path(os.path.relpath(base, folder)).as_posix()


def _is_schema(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("title") == "Winnow recipe"
