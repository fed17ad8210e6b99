"""Example pairs that show a model how captions are rewritten: four sources, as in LaCLIP (arXiv 2305.20088), or a file of one's own.

The sets are written for Winnow in the spirit of the paper's four: `polished` and `vivid` as assistants write, `human` as people do, and
`coco`, eighteen pictures with five captions each, of which any two make a pair.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from schemas.errors import InputError

_SHIPPED = "examples.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of example pairs: pairs as they are, or groups of captions that say the same."""

    name: str
    pairs: tuple[tuple[str, str], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def size(self) -> int:
        """How many different examples can be drawn at once."""
        return len(self.pairs) + len(self.groups)

    def draw(self, count: int, draws: random.Random) -> list[tuple[str, str]]:
        """Return `count` pairs, no pair and no group twice."""
        drawn = []
        for number in draws.sample(range(self.size), count):
            if number < len(self.pairs):
                drawn.append(self.pairs[number])
            else:
                first, second = draws.sample(self.groups[number - len(self.pairs)], 2)
                drawn.append((first, second))
        return drawn


def read_sources(path: str = "") -> list[Source]:
    """Return the sources of a JSON file, or those that come along; raises InputError where the file holds something else.

    {"name": {"pairs": [["input", "output"], ...]}, "other": {"groups": [["one", "the same in other words", ...], ...]}}
    """
    where = path or _SHIPPED
    try:
        text = Path(path).read_text("utf-8") if path else (files("curate.captions") / _SHIPPED).read_text("utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"examples {where!r} cannot be read: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"examples {where!r} must hold sources by name, and at least one")
    return [_read_source(where, name, value) for name, value in content.items()]


def _read_source(where: str, name: str, value: Any) -> Source:
    if not isinstance(value, Mapping) or set(value) - {"pairs", "groups"} or not value:
        raise InputError(f"examples {where!r}: source {name!r} must hold pairs or groups")
    for kind, smallest in (("pairs", 2), ("groups", 2)):
        for number, texts in enumerate(value.get(kind, [])):
            is_valid = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
            if not is_valid or len(texts) < smallest or (kind == "pairs" and len(texts) > smallest):
                raise InputError(f"examples {where!r}: source {name!r}, {kind} {number} is {texts!r}; it takes texts")
    return Source(
        name=name,
        pairs=tuple((given, wanted) for given, wanted in value.get("pairs", [])),
        groups=tuple(tuple(texts) for texts in value.get("groups", [])),
    )
