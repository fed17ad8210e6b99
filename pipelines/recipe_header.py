"""What a recipe's file says of itself: the comment it opens with, read as a summary and named fields.

    # What it does, in a sentence or two.
    #
    #   paper     SemDeDup, Abbas et al. 2023, arXiv 2303.09540
    #   command   winnow run semdedup --set parameters.model=CLIP_FOLDER --input pairs.parquet --pool pool
    #             --out out
    #   measured  not measured
    #
    # Anything else, for the file's reader.

`winnow recipes` and docs/recipes.md are made of these, so that a recipe is described once, where it is written.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

from pipelines.render import make_table
from schemas.errors import RecipeError

NO_PAPER = "none"
NOT_MEASURED = "not measured"
_FIELD = re.compile(r"#   ([a-z]+) +(\S.*)")
_CONTINUED = re.compile(r"#             +(\S.*)")


@dataclass(frozen=True, kw_only=True)
class RecipeHeader:
    """What a recipe is, needs and costs, as its file's opening comment has it; empty where that says nothing."""

    summary: str = ""
    paper: str = NO_PAPER  # name, authors, year, arXiv number
    command: str = ""  # how it is run
    needs: str = ""  # what each parameter without a value has to be
    cost: str = ""  # of the data, per picture or caption
    hardware: str = ""  # of the measurement
    expected: str = ""  # what its authors report
    measured: str = NOT_MEASURED  # what came out here
    differs: str = ""  # where it departs from the paper


def read_header(path: Path) -> RecipeHeader:
    """Read the comment that a recipe's file opens with.

    Raises `RecipeError` with file and line where a field has a name that there is not, or is there twice.
    """
    known = [field.name for field in fields(RecipeHeader)][1:]
    summary: list[str] = []
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("#"):
            break
        if line.startswith("# yaml-language-server:"):
            continue
        if field := _FIELD.fullmatch(line):
            if field[1] not in known or field[1] in found:
                problem = "is there twice" if field[1] in found else f"is none of {', '.join(known)}"
                raise RecipeError(f"{path}:{number}: the header's field {field[1]!r} {problem}")
            current = found[field[1]] = [field[2]]
        elif current is not None:
            continued = _CONTINUED.fullmatch(line)
            if not continued:  # what comes after the fields is for the file's reader
                break
            current.append(continued[1])
        elif line.startswith("# "):
            summary.append(line.removeprefix("# ").strip())
    return RecipeHeader(summary=" ".join(summary), **{name: " ".join(lines) for name, lines in found.items()})


def opening_comment(path: Path) -> str:
    """Return the comment that a recipe's file opens with, as it stands there."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def tabulate_recipes(headers: Mapping[str, RecipeHeader]) -> RenderableType:
    """Return recipes with what they do, the paper, what they cost and what came out here."""
    table = make_table("recipe", "what it does", "paper", "cost", "measured here")
    for name, header in headers.items():
        table.add_row(name, *map(escape, (header.summary, header.paper, header.cost, header.measured)))
    return table


def describe_recipes(headers: Mapping[str, RecipeHeader]) -> list[dict[str, str]]:
    """Return recipes with every field of their headers, as JSON values."""
    return [{"name": name, **asdict(header)} for name, header in headers.items()]
