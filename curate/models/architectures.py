"""Architectures that `transformers` does not know by itself, brought by installed packages.

A package names the module that makes an architecture known (by `AutoConfig.register` and `AutoModel.register`, when it is imported) as an
entry point called as the `model_type` in the architecture's configuration:

    [project.entry-points."winnow.architectures"]
    acme_clip = "acme.models"

Only what a model's own configuration asks for is imported: a package that is broken stands in the way of its own models alone.
"""

import functools
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from curate.models.preprocess import read_config
from schemas.errors import InputError

GROUP = "winnow.architectures"


def register_architectures(model: str, revision: str = "") -> None:
    """Make the architectures of a model folder or hub id known to `transformers`, those of its parts included.

    What no package brings is left to `transformers` to know or to refuse. A module that cannot be imported raises InputError.
    """
    wanted = _model_types(read_config(model, revision, "config.json") or {})
    for entry in _entry_points():
        if entry.name in wanted:
            _import_module(entry, model)


@functools.cache
def _entry_points() -> tuple[metadata.EntryPoint, ...]:
    """Return what is registered; kept, because it means a look into every installed package."""
    return tuple(metadata.entry_points(group=GROUP))


def _import_module(entry: metadata.EntryPoint, model: str) -> None:
    try:
        entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else "an installed package"
        raise InputError(
            f"{model} has the architecture {entry.name!r}, which {package} brings in {entry.value!r} (entry point of {GROUP}), and that "
            f"cannot be imported: {type(error).__name__}: {error}; repair or remove that package"
        ) from error


def _model_types(config: Mapping[str, Any]) -> set[str]:
    found = {str(config["model_type"])} if config.get("model_type") else set()
    return found.union(*(_model_types(value) for value in config.values() if isinstance(value, Mapping)))
