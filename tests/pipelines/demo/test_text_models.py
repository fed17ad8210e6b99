"""The demo's models of text: made in full, in formats that the operators load, and measured through them."""

from dataclasses import replace
from pathlib import Path

import pytest

from curate.captions.examples import read_sources
from pipelines.demo.picture import Picture, make_body
from pipelines.demo.scenes import make_scene
from pipelines.demo.text_models import (
    CAPTIONER_FOLDER,
    EXAMPLES_FILE,
    REWRITER_FOLDER,
    TextModelConfig,
    make_examples,
    read_pixels,
    train_text_models,
)
from pipelines.demo.text_report import measure_text_models
from schemas.progress import SilentProgress

CONFIG = TextModelConfig(num_scenes=8, width=32, captioner_steps=2, rewriter_steps=4, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text-models")
    train_text_models(folder, CONFIG, progress=SilentProgress())
    return folder


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(folder).parts[0] for path in before} == {CAPTIONER_FOLDER, REWRITER_FOLDER, EXAMPLES_FILE}
    train_text_models(folder, replace(CONFIG, seed=1), progress=SilentProgress())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_the_same_seed_makes_the_same_rewriter(folder: Path, tmp_path: Path) -> None:
    train_text_models(tmp_path, CONFIG, progress=SilentProgress())
    for name in (f"{REWRITER_FOLDER}/model.safetensors", f"{REWRITER_FOLDER}/tokenizer.json", EXAMPLES_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_operators_load_both_and_what_they_say_is_measured(folder: Path) -> None:
    report = measure_text_models(folder, num_scenes=3)
    assert report.captions.num_captions == 3
    assert report.captions.counts == 0  # two steps teach nothing
    assert report.num_rewrites == 12
    assert 0 <= report.faithful_rewrites <= report.taken_rewrites <= 1
    assert len(report.caption_examples) == 3


def test_examples_are_four_sources_of_true_pairs(folder: Path) -> None:
    sources = read_sources(str(folder / EXAMPLES_FILE))
    assert [len(source.pairs) for source in sources] == [16] * 4
    assert all(given != wanted for source in sources for given, wanted in source.pairs)
    assert make_examples(0) != make_examples(1)


def test_pictures_are_squeezed_to_a_square() -> None:
    data = make_body(Picture(scene=make_scene(3)))
    assert read_pixels(data, 24).shape == (24, 24, 3)
