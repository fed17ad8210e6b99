"""Architectures of installed packages: found by name, imported where they are needed, and blamed where they fail."""

import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from curate.models import architectures
from curate.models.clip import encode_prompts, load_model, load_tokenize
from schemas.errors import InputError
from tests.model import make_checkpoint

REGISTERS = """
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

class AcmeConfig(CLIPConfig):
    model_type = "acme_clip"

class AcmeModel(CLIPModel):
    config_class = AcmeConfig

AutoConfig.register("acme_clip", AcmeConfig)
AutoModel.register(AcmeConfig, AcmeModel)
"""
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package `acme` whose module brings the architecture of the given name."""

    def install_package(architecture: str, code: str) -> None:
        site = tmp_path / "site"
        information = site / "acme-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[{architectures.GROUP}]\n{architecture} = {architecture}_module\n"
        )
        (site / f"{architecture}_module.py").write_text(code)
        monkeypatch.syspath_prepend(site)
        architectures._entry_points.cache_clear()

    yield install_package
    architectures._entry_points.cache_clear()


def make_foreign(folder: Path, architecture: str) -> str:
    """Write a CLIP under another architecture's name."""
    make_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": architecture}))
    return str(folder)


def test_a_package_of_ones_own_brings_an_architecture(tmp_path: Path, install: Install) -> None:
    foreign, plain = make_foreign(tmp_path / "foreign", "acme_clip"), str(make_checkpoint(tmp_path / "plain"))
    with pytest.raises(InputError, match="holds no model that transformers can load"):
        load_model(foreign)
    install("acme_clip", REGISTERS)
    prompts = ("a red circle", "a blue square number 7")
    np.testing.assert_array_equal(encode_prompts(foreign, "", prompts), encode_prompts(plain, "", prompts))
    assert type(load_model(foreign)._network).__name__ == "AcmeModel"


def test_a_broken_package_is_named_and_stands_in_nobody_elses_way(tmp_path: Path, install: Install) -> None:
    foreign, plain = make_foreign(tmp_path / "foreign", "acme_broken"), str(make_checkpoint(tmp_path / "plain"))
    install("acme_broken", "raise RuntimeError('no licence')")
    message = r"foreign has the architecture 'acme_broken', which acme brings in 'acme_broken_module' .* RuntimeError: no licence"
    for load in (load_model, load_tokenize):
        with pytest.raises(InputError, match=message):
            load(foreign)
        load(plain)


def test_the_resnet_of_training_is_registered() -> None:
    (entry,) = metadata.entry_points(group=architectures.GROUP, name="winnow_resnet")
    assert entry.value == "train.resnet"
