"""Checkpoints of `winnow train` score a pool with the features that training gives; what a model takes is what it is fed."""

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from curate.columns import Input
from curate.images import to_column
from curate.models import staging
from curate.models.clip import TwoTowerModel, load_model, load_tokenize
from curate.models.preprocess import load_settings, prepare_images, stack_images, stack_patches
from curate.models.staging import Feeder
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_score import ClipScore
from curate.operators.clip_text_embedding import ClipTextEmbedding
from schemas.errors import InputError
from tests.contract import column, picture_input, run
from tests.model import make_checkpoint, make_siglip, make_siglip2
from tests.pool import draw
from train import model as training
from train.packing import grid_key
from train.request import View

ROOT = Path(__file__).parents[3]
TEXTS = ["a red circle number 3", "", "a blue square number 11 on grey ground", "word " * 40, "green"]
SHAPES = [(96, 72), (50, 200), (400, 33), (32, 32), (20, 20)]
# Left alone or enlarged by up to 20 patches of 8 pixels. What is reduced differs from Pillow's by a step here and there, and so does
# Pillow's from one version to another, which changes the order of its passes; `test_preprocess` bounds that.
EXACT_SHAPES = [(32, 32), (64, 16), (16, 64), (40, 32), (32, 40), (20, 20), (12, 30)]
# Embeds in a process that has not seen the trainer.
_SCRIPT = """
import sys
import numpy as np, pyarrow as pa
from curate.columns import Input
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_text_embedding import ClipTextEmbedding
from tests.contract import run

operator, model, source, target = sys.argv[1:]
operator = {"image": ClipEmbedding, "alt_text": ClipTextEmbedding}[operator](model=model)
(values,) = pa.ipc.open_file(source).read_all().combine_chunks().columns
assert not any(name.partition(".")[0] == "train" for name in sys.modules)
output = run(operator, {operator.reads[0]: Input.from_column(values.combine_chunks())}, len(values))
assert "train.resnet" in sys.modules
np.save(target, np.array(output.columns[operator.writes.names[0]].to_pylist(), np.float32))
"""


def pictures(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[np.ndarray]:
    return [
        np.asarray(draw((200, 30, 40), "circle", seed=seed, width=width, height=height))
        for seed, (width, height) in enumerate(shapes)
    ]


def prepare(folder: Path, made: Sequence[np.ndarray] = ()) -> pa.ChunkedArray:
    settings = load_settings(str(folder), any_shape=True)
    return pa.chunked_array([prepare_images(settings, pa.chunked_array([to_column(made or pictures())]))])


def trained_features(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what the trainer's own model gives for pictures, prepared as the operator prepares them, and texts."""
    model, settings = training.load_model(folder), load_settings(str(folder), any_shape=True)
    with torch.inference_mode():
        if model.patch_size:
            patches, grids = (torch.from_numpy(part) for part in stack_patches(settings, prepare(folder)))
            images = model({View().key: patches, grid_key(View()): grids}, (View(),))[View().key]
        else:
            pixels = stack_images(settings, prepare(folder)).transpose(0, 3, 1, 2)
            images = model.encode_image(torch.from_numpy(pixels.copy()))
        return images.numpy(), model.encode_text(TEXTS).numpy()


@pytest.mark.parametrize("tower", ["vit", "convnext", "resnet", "navit"])
def test_a_checkpoint_scores_with_the_features_of_training(tower: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / tower, image_tower=tower)
    images, texts = trained_features(folder)
    image = run(ClipEmbedding(model=str(folder)), {"image": picture_input(pictures())}, len(SHAPES))
    text = run(ClipTextEmbedding(model=str(folder)), {"alt_text": Input.from_column(pa.array(TEXTS))}, len(TEXTS))
    np.testing.assert_allclose(np.array(column(image, "image_embedding")), images, atol=1e-3)
    np.testing.assert_allclose(np.array(column(text, "text_embedding")), texts, atol=1e-3)
    inputs = {
        name: Input.from_column(found.columns[name])
        for name, found in (("image_embedding", image), ("text_embedding", text))
    }
    scores = column(run(ClipScore(model=str(folder)), inputs, len(TEXTS)), "clip_score")
    np.testing.assert_allclose(scores, (images * texts).sum(axis=1), atol=1e-3)
    assert np.ptp(scores) > 0.01


def test_squares_are_what_evaluation_shows_a_navit(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "navit", image_tower="navit")
    squares = [picture[:32, :32] for picture in pictures()[:1] * 3]
    found = run(ClipEmbedding(model=str(folder)), {"image": picture_input(squares)}, len(squares))
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    expected = training.load_model(folder).encode_image(pixels).detach().numpy()
    np.testing.assert_allclose(np.array(column(found, "image_embedding")), expected, atol=1e-3)


@pytest.mark.parametrize("reads", ["image", "alt_text"])
def test_a_process_of_its_own_finds_the_resnet(reads: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "resnet", image_tower="resnet")
    images, texts = trained_features(folder)
    values = to_column(pictures()) if reads == "image" else pa.array(TEXTS)
    table = pa.table({reads: values})
    with pa.ipc.new_file(tmp_path / "inputs.arrow", table.schema) as writer:
        writer.write_table(table)
    arguments = [reads, str(folder), str(tmp_path / "inputs.arrow"), str(tmp_path / "found.npy")]
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), images if reads == "image" else texts, atol=1e-3)


@pytest.mark.parametrize("kind", ["siglip2", "navit"])
def test_any_shape_is_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = make_siglip2(tmp_path / kind) if kind == "siglip2" else make_checkpoint(tmp_path / kind, image_tower=kind)
    processor, network = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    made, expected = pictures(EXACT_SHAPES), []
    for picture in made:
        with torch.inference_mode():
            output = network.get_image_features(**processor(images=Image.fromarray(picture), return_tensors="pt"))
        expected.append(torch.nn.functional.normalize(output.pooler_output[0], dim=-1).numpy())
    np.testing.assert_allclose(load_model(str(folder)).encode_images(prepare(folder, made)), expected, atol=1e-3)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_a_processor_that_does_not_fit_its_tower_is_refused(tmp_path: Path) -> None:
    native, fixed = make_siglip2(tmp_path / "native"), make_siglip(tmp_path / "fixed")
    texts = [(folder / "preprocessor_config.json").read_text() for folder in (native, fixed)]
    (fixed / "preprocessor_config.json").write_text(texts[0])
    with pytest.raises(InputError, match=r"tower for pictures of one shape, but .* makes pictures of any shape"):
        load_model(str(fixed))
    (native / "preprocessor_config.json").write_text(texts[1])
    with pytest.raises(InputError, match=r"tower for pictures of any shape in patches of 8 pixels \(NaFlex\), but"):
        load_model(str(native))
    (native / "preprocessor_config.json").write_text(json.dumps({**json.loads(texts[0]), "patch_size": 16}))
    with pytest.raises(InputError, match=r"patches of 8 pixels .* makes .* patches of 16 pixels"):
        load_model(str(native))


def as_on_a_gpu(model: TwoTowerModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> None:
    """Let a model on the CPU cut its tables, and compute in `dtype`, as it does on a GPU."""
    monkeypatch.setattr(model._feeder, "is_gpu", True)
    monkeypatch.setattr(staging, "PART_TOKENS", 45)
    monkeypatch.setattr(model, "_network", copy.deepcopy(model._network).to(dtype))


def make(kind: str, folder: Path) -> Path:
    if kind == "siglip":
        return make_siglip(folder)
    return make_siglip2(folder) if kind == "siglip2" else make_checkpoint(folder, image_tower=kind)


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet", "navit", "siglip", "siglip2"])
def test_parts_of_a_table_are_put_together(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(kind, tmp_path / kind)
    model, tokenize = load_model(str(folder)), load_tokenize(str(folder))
    made = pictures(SHAPES * 3)
    whole = model.encode_images(prepare(folder, made)), model.encode_ids(tokenize(TEXTS * 3), tokenize.pad_id)
    runs = []
    monkeypatch.setattr(model._feeder, "run", lambda *given: runs.append(Feeder.run(model._feeder, *given)) or runs[-1])
    as_on_a_gpu(model, monkeypatch)
    parts = model.encode_images(prepare(folder, made)), model.encode_ids(tokenize(TEXTS * 3), tokenize.pad_id)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len(runs) == 2
    assert np.abs(np.diff(whole[1], axis=0)).max() > 0.01


def test_rows_too_much_for_half_precision_are_computed_in_single(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint(tmp_path / "vit")
    model, tokenize = load_model(str(folder)), load_tokenize(str(folder))
    made, ids = prepare(folder), tokenize(TEXTS)
    images, texts = model.encode_images(made), model.encode_ids(ids, tokenize.pad_id)
    as_on_a_gpu(model, monkeypatch, torch.float16)
    half = model.encode_images(made), model.encode_ids(ids, tokenize.pad_id)
    np.testing.assert_allclose(half[0], images, atol=2e-3)
    np.testing.assert_allclose(half[1], texts, atol=2e-3)
    assert not np.array_equal(half[0], images)
    assert caplog.records == []
    # A word that the tower cannot bear: its texts, and no others, are computed once more.
    word = tokenize(["red"])[0][1]
    model._network.text_model.embeddings.token_embedding.weight.data[word] = torch.inf
    found = model.encode_ids(ids, tokenize.pad_id)
    has_word = [word in row for row in ids]
    assert has_word == [True, False, False, False, False]
    np.testing.assert_allclose(found[has_word], texts[has_word], atol=1e-6)
    np.testing.assert_array_equal(found[1:], half[1][1:])
    assert [record.getMessage() for record in caplog.records] == [
        "half precision overflowed, computed in single precision rows=1"
    ]
    model._network.vision_model.embeddings.class_embedding.data[:] = 7e4
    np.testing.assert_allclose(model.encode_images(made), images, atol=1e-6)
