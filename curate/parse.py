"""Operators from text: `clip_score:model=DIR,label=b32,bind.alt_text=recap.recaption`, and from a recipe's mapping."""

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from curate.fingerprint import FILE_MODULE_PREFIX, source_of
from curate.operator import Operator, find_operator
from schemas.errors import InputError

_BIND_PREFIX = "bind."
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_operator(text: str) -> Operator:
    """Return the operator that `NAME[:key=value,...]` names; NAME is one of `winnow operators`, or the path of a file with one operator.

    `label=` is its name in SQL, `bind.INPUT=` the column it reads instead of INPUT, every other key one of its parameters.
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, object] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"operator {text!r}: {part!r} is not key=value; write NAME:key=value,key=value")
        if key.strip() in parameters:
            raise InputError(f"operator {text!r} sets {key.strip()!r} twice")
        parameters[key.strip()] = value.strip()
    return make_operator(name.strip(), parameters)


def make_operator(name: str, parameters: Mapping[str, object]) -> Operator:
    """Return the operator `name` with parameters as a recipe or a command line gives them: text is read as the parameter's type."""
    operator = find_class(name)
    bind: dict[str, str] = {}
    values: dict[str, Any] = {}
    known = {f.name: f for f in fields(operator) if f.name != "bind"}
    hints = get_type_hints(operator)
    for key, value in parameters.items():
        if key == "bind" and isinstance(value, Mapping):
            bind |= {str(column): str(source) for column, source in value.items()}
        elif key.startswith(_BIND_PREFIX):
            bind[key.removeprefix(_BIND_PREFIX)] = str(value)
        elif key in known:
            values[key] = _convert(value, hints[key], f"{name}: {key}")
        else:
            raise InputError(f"operator {name!r} has no parameter {key!r}{_suggest(key, known)}; it has {_list(known)}")
    needed = [
        f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING and f.name not in values
    ]
    if needed:
        raise InputError(f"operator {name!r} needs {_list(needed)}; write {name}:{needed[0]}=...")
    return operator(bind=bind, **values)


def find_class(name: str) -> type[Operator]:
    """Return the operator class called `name`, importing that one module only."""
    if name.endswith(".py"):
        return find_operator(_load_file(Path(name)))
    package = importlib.import_module("curate.operators")
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    if name not in names:
        raise InputError(
            f"no operator is called {name!r}{_suggest(name, names)}; `winnow operators` lists them, and a path ending in .py "
            f"names one of your own"
        )
    return find_operator(importlib.import_module(f"curate.operators.{name}"))


def is_from_file(operator: Operator) -> bool:
    """Tell whether an operator is a user's file, whose code workers do not have."""
    return source_of(operator) != ""


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"operator file {str(path)!r} does not exist")
    # Named by content, so that an edited file is another module, with other annotations: nobody raises the version of a draft.
    name = FILE_MODULE_PREFIX + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _convert(value: object, wanted: Any, where: str) -> object:
    if not isinstance(value, str):
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if wanted in (int, float, bool, str) and type(value) is not wanted:
            raise InputError(f"{where} is {value!r}; it takes {wanted.__name__}")
        return value
    if wanted is str:
        return value
    if wanted is bool:
        if value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        raise InputError(f"{where} is {value!r}; it takes true or false")
    if wanted in (int, float):
        try:
            return wanted(value)
        except ValueError as error:
            raise InputError(f"{where} is {value!r}; it takes {wanted.__name__}") from error
    raise InputError(f"{where} takes {wanted}, which text cannot express; build the operator in Python")


def _suggest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
