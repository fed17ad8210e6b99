"""Sentences with a place for a class label."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from schemas.errors import InputError

_PLACE = re.compile(r"\{(\w*)\}")
_PLACES = frozenset(["label", "a_label", "modality", "a_modality"])
_VOWEL = re.compile(r"(?:[aeiou]|hour|honest|8|x-ray|[MR]R(?:\b|[IA])|[FLNSX]\b)(?!ni(?!n))", re.IGNORECASE)
_NO_ARTICLE = re.compile(r"(?:an?|the|some|two|three|\d)\b", re.IGNORECASE)


def read_templates(source: str) -> list[str]:
    """Return the templates of a shipped set, by its name, or of a file: one per line, or a JSON list.

    Each has `{label}` or `{a_label}` (with its article) in it, and may have `{modality}` or `{a_modality}`.
    """
    shipped: Mapping[str, list[str]] = json.loads((files("curate.captions") / "templates.json").read_text("utf-8"))
    if source in shipped:
        return shipped[source]
    path = Path(source)
    if not path.is_file():
        raise InputError(f"templates {source!r} is neither a file nor one of {', '.join(shipped)}")
    text = path.read_text("utf-8")
    if source.endswith(".json"):
        try:
            templates = json.loads(text)
        except ValueError as error:
            raise InputError(f"templates {source!r} is no JSON: {error}") from error
    else:
        templates = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(templates, list) or not templates:
        raise InputError(f"templates {source!r} must hold a list of sentences, and at least one")
    for number, template in enumerate(templates, 1):
        _check(source, number, template)
    return templates


def needs_modality(templates: Sequence[str]) -> bool:
    """Tell whether any template names the kind of picture."""
    return any("modality}" in template for template in templates)


def fill(template: str, label: str, modality: str = "") -> str:
    """Return a template with a label in it; what stands in the label is text and no place."""
    values = {
        "label": label,
        "a_label": with_article(label),
        "modality": modality,
        "a_modality": with_article(modality),
    }
    return _PLACE.sub(lambda found: values[found[1]], template)


def with_article(label: str) -> str:
    """Return a label after "a" or "an", or as it is where it has an article or a number, or begins with a capital."""
    if not label or _NO_ARTICLE.match(label) or label[:2].istitle():
        return label
    return f"{'an' if _VOWEL.match(label) else 'a'} {label}"


def join_labels(labels: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return f"{', '.join(labels[:-1])} and {labels[-1]}" if len(labels) > 1 else "".join(labels)


def _check(source: str, number: int, template: object) -> None:
    if not isinstance(template, str):
        raise InputError(f"templates {source!r}: entry {number} is {template!r}, not text")
    places = _PLACE.findall(template)
    unknown = sorted(set(places) - _PLACES)
    if unknown:
        raise InputError(
            f"templates {source!r}: entry {number}, {template!r}, has the place {{{unknown[0]}}}; there are "
            f"{', '.join(f'{{{place}}}' for place in sorted(_PLACES))}"
        )
    if not {"label", "a_label"} & set(places):
        raise InputError(
            f"templates {source!r}: entry {number}, {template!r}, has no place for the label; write {{label}}"
        )
