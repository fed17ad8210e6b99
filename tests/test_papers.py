"""docs/papers.md names what there is: losses, operators, recipes, keys of a recipe and options of losses."""

import inspect
import re
from pathlib import Path

import pytest

from curate.operator import discover
from pipelines.fields import read_settings
from pipelines.recipe import shipped_recipes
from pipelines.yaml_file import read_file
from train.config import MODELS, TrainConfig
from train.loss import Objective, discover_losses, loss_class
from train.sampling import Batches, SamplingConfig
from train.tower_config import TowerConfig

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "papers.md").read_text(encoding="utf-8")
SECTIONS = {"towers": TowerConfig, "sampling": SamplingConfig, "sampling.batches": Batches}
# No paper of the list is theirs.
OWN = {"importance"}


def fields(cls: type) -> set[str]:
    return {setting.name for setting in read_settings(cls)}


def quoted(pattern: str) -> list[re.Match[str]]:
    found = [match for text in re.findall(r"`([^`]+)`", TEXT) if (match := re.fullmatch(pattern, text))]
    assert found
    return found


def test_every_loss_is_named_and_no_other() -> None:
    assert set(re.findall(r"losses\.md#([a-z_]+)", TEXT)) == set(discover_losses()) - OWN


def test_every_name_is_a_loss_an_operator_a_recipe_or_a_setting() -> None:
    known = {*discover_losses(), *discover(), *shipped_recipes(), *fields(TrainConfig), "train"}
    options = {
        "--vary",
        *(name for loss in discover_losses() for name in inspect.signature(loss_class(loss)).parameters),
    }
    assert {match[0] for match in quoted(r"[a-z_0-9-]+")} - known - options == set()


def test_keys_of_a_recipe() -> None:
    for match in quoted(r"((?:towers|sampling)(?:\.batches)?)\.([a-z_]+)(?:: .*)?"):
        assert match[2] in fields(SECTIONS[match[1]]), match[0]
    for match in quoted(r"model: ([a-z0-9-]+)"):
        assert match[1] in MODELS


def test_options_of_losses(tmp_path: Path) -> None:
    path = tmp_path / "losses.yaml"
    for match in quoted(r"(losses: )?(\{.*\}|info_nce: \{.*\})"):
        path.write_text(f"losses: {match[2] if match[1] else '{' + match[2] + '}'}\n", encoding="utf-8")
        Objective(read_file(path).value["losses"])


@pytest.mark.parametrize("name", ["papers.md", "losses.md", "index.md"])
def test_links_lead_to_a_heading(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]*(?:#[^)]*)?)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        page = (DOCS / (file or name)).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^a-z0-9 _-]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", page, re.M)
        }
        assert not anchor or anchor in headings, target
