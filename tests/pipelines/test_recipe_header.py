"""What recipes say of themselves, in the comment they open with."""

from pathlib import Path

import pytest

from pipelines.recipe import load_recipe, shipped_recipes
from pipelines.recipe_header import (
    NOT_MEASURED,
    RecipeHeader,
    describe_recipes,
    opening_comment,
    read_header,
    tabulate_recipes,
)
from schemas.errors import RecipeError
from tests.pipelines.text import as_text

HEADER = """\
# yaml-language-server: $schema=recipe.schema.json
# What it does,
# in two lines.
#
#   paper     Someone et al. 2020, arXiv 2001.00001
#   command   winnow run mine --input pairs.parquet
#             --pool pool
#   measured  7 of 9 rows kept
#
# A word for the reader:   paper     of another kind
name: mine
# cost      not of the header
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_the_summary_and_the_fields(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER)
    assert read_header(path) == RecipeHeader(
        summary="What it does, in two lines.",
        paper="Someone et al. 2020, arXiv 2001.00001",
        command="winnow run mine --input pairs.parquet --pool pool",
        measured="7 of 9 rows kept",
    )
    assert opening_comment(path) == HEADER.partition("name:")[0]


def test_a_file_without_one(tmp_path: Path) -> None:
    assert read_header(write(tmp_path, "name: mine\n")) == RecipeHeader()
    assert RecipeHeader().measured == NOT_MEASURED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# x\n#\n#   papr     y\n", r"r\.yaml:3: the header's field 'papr' is none of paper, command, needs"),
        ("# x\n#   cost      y\n#   cost      z\n", r"r\.yaml:3: the header's field 'cost' is there twice"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read_header(write(tmp_path, text))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_says_what_it_is_needs_and_costs(name: str) -> None:
    path = shipped_recipes()[name]
    header = read_header(path)
    assert header.summary.endswith(".")
    assert header.cost
    assert header.measured
    assert header.paper == "none" or "arXiv " in header.paper
    for field in ("paper", "command", "cost", "measured"):
        assert f"#   {field:<10}" in opening_comment(path), f"{name} does not say its {field}"
    lacking = [parameter for parameter, value in load_recipe(name).parameters.items() if value is None]
    for parameter in lacking:
        assert f"{parameter}: " in header.needs, f"{name} does not say what {parameter} has to be"
        assert f"parameters.{parameter}=" in header.command, f"the command of {name} does not give {parameter}"


def test_the_table_and_the_json_hold_every_recipe(tmp_path: Path) -> None:
    headers = {"mine": read_header(write(tmp_path, HEADER)), "[red]other": RecipeHeader(summary="[bold]x[/bold].")}
    text = as_text(tabulate_recipes(headers))
    assert "7 of 9 rows kept" in text
    assert "[bold]x[/bold]." in text
    first, second = describe_recipes(headers)
    assert first["name"] == "mine"
    assert first["command"] == "winnow run mine --input pairs.parquet --pool pool"
    assert second["measured"] == "not measured"
