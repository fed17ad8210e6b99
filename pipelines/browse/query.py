"""What the page asks for: the state that its address holds, read and checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curate.operators.manual import DECISIONS
from pipelines.browse.numbers import Range
from schemas.errors import InputError

MAX_PAGE = 240
DEFAULT_PAGE = 60
MAX_RANGES = 20
# Of decisions, beside the three themselves.
UNDECIDED, DECIDED = "none", "any"
RANDOM = "random"
_MAX_OFFSET = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which rows, and in which order.

    Query(filter="caption_num_words > 2", ranges=(Range.parse("b32.clip_score:0.25.."),), selection="demo", outcome="rule:words")
    """

    filter: str = ""  # a SQL condition over the pool
    ranges: tuple[Range, ...] = ()
    selection: str = ""  # a name or a folder
    outcome: str = ""  # what that selection did: kept, dropped, rule:NAME
    decision: str = ""  # keep, drop, flag, none, any
    sort: str = ""  # a numeric column, url, alt_text or random; empty: pool order
    descending: bool = False

    def __post_init__(self) -> None:
        if self.decision not in ("", *DECISIONS, UNDECIDED, DECIDED):
            raise InputError(
                f"decision {self.decision[:200]!r} must be one of {', '.join((*DECISIONS, UNDECIDED, DECIDED))}"
            )
        if self.outcome and not self.selection:
            raise InputError(f"outcome {self.outcome[:200]!r} is a selection's; choose a selection as well")
        if len(self.ranges) > MAX_RANGES:
            raise InputError(
                f"{len(self.ranges)} sliders are too many; use at most {MAX_RANGES}, and the filter for the rest"
            )

    @classmethod
    def parse(cls, parameters: Mapping[str, Sequence[str]]) -> "Query":
        """Read the parameters of a request; a sort with a leading `-` is descending."""
        sort = parse_text(parameters, "sort")
        return cls(
            filter=parse_text(parameters, "filter"),
            ranges=tuple(Range.parse(text) for text in parameters.get("range", ())),
            selection=parse_text(parameters, "selection"),
            outcome=parse_text(parameters, "outcome"),
            decision=parse_text(parameters, "decision"),
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
        )

    def to_rule(self) -> str:
        """Return the filter and the thresholds as one rule for a selection."""
        parts = [
            f"({self.filter}\n)" if self.filter and self.ranges else self.filter,
            *(r.to_sql() for r in self.ranges),
        ]
        return " AND ".join(part for part in parts if part)


def parse_text(parameters: Mapping[str, Sequence[str]], name: str) -> str:
    """Return a parameter without the spaces around it; empty where it is not there."""
    return next(iter(parameters.get(name, ())), "").strip()


def parse_whole(parameters: Mapping[str, Sequence[str]], name: str, default: int, most: int = _MAX_OFFSET) -> int:
    """Return a parameter that is a whole number from 0 to `most`; raises InputError where it is not."""
    text = next(iter(parameters.get(name, ())), str(default))
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > most:
        raise InputError(f"{name} {text[:50]!r} must be a whole number from 0 to {most:,}")
    return int(text)
