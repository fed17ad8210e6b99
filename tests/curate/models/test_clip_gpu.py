"""Two-tower models on a GPU against plain loops in single precision on the same GPU: the scores that thresholds are applied to."""

import copy
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from benchmarks.measured_model import make_clip
from curate.models import staging
from curate.models.clip import TwoTowerModel, load_model, load_tokenize
from curate.models.preprocess import load_settings, stack_images, stack_patches
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_score import ClipScore
from curate.operators.clip_text_embedding import ClipTextEmbedding
from tests.contract import column, make_inputs, run
from tests.curate.models.test_clip import make, pictures, prepare
from tests.model import CAPTIONS
from tests.pool import Row, draw, make_rows

pytestmark = pytest.mark.gpu

# What clip_score promises; features of unit length differ by less per component.
TOLERANCE = 1e-3
COLOURS = {"red": (200, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 190), "yellow": (230, 200, 50)}


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Keep the reference out of TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def single_network(folder: Path) -> Any:
    from transformers import AutoModel

    load_model(str(folder))  # makes its architecture known
    return AutoModel.from_pretrained(folder, dtype=torch.float32).cuda().eval()


def single_features(
    folder: Path, prepared: pa.ChunkedArray, texts: list[str], network: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model gives for each picture and text by itself, in single precision, with nothing of ours but the bytes."""
    network = network or single_network(folder)
    settings, tokenize = load_settings(str(folder), any_shape=True), load_tokenize(str(folder))
    mean, std = torch.tensor(settings.mean).cuda(), torch.tensor(settings.std).cuda()
    images: list[np.ndarray] = []
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for row in range(len(prepared)):
            one = prepared.slice(row, 1)
            if settings.patch_size:
                patches, grids = stack_patches(settings, one)
                pixels = torch.from_numpy(patches).cuda().view(1, patches.shape[1], -1, 3)
                inputs = {
                    "pixel_values": ((pixels.float() * settings.scale - mean) / std).flatten(2),
                    "pixel_attention_mask": torch.ones(1, patches.shape[1], dtype=torch.long).cuda(),
                    "spatial_shapes": torch.from_numpy(grids),
                }
            else:
                pixels = torch.from_numpy(stack_images(settings, one).copy()).cuda()
                values = (pixels.float() * settings.scale - mean) / std
                inputs = {"pixel_values": values.permute(0, 3, 1, 2).contiguous()}
            images.append(unit(network.get_image_features(**inputs)))
        found += [unit(network.get_text_features(input_ids=torch.tensor([ids]).cuda())) for ids in tokenize(texts)]
    return np.concatenate(images), np.concatenate(found)


def unit(output: Any) -> np.ndarray:
    feature = output if hasattr(output, "shape") else output.pooler_output
    found: np.ndarray = functional.normalize(feature.float(), dim=-1).cpu().numpy()
    return found


def assert_same_scores(
    found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray], tolerance: float = TOLERANCE
) -> None:
    """Compare every picture's score with every text."""
    for features in found:
        assert features.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    scores = wanted[0] @ wanted[1].T
    assert np.abs(found[0] @ found[1].T - scores).max() <= tolerance
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet", "navit", "siglip", "siglip2"])
def test_scores_are_those_of_single_precision(kind: str, tmp_path: Path) -> None:
    folder = make(kind, tmp_path / kind)
    model, tokenize = load_model(str(folder)), load_tokenize(str(folder))
    assert (model._network.dtype, model._network.device.type) == (torch.float16, "cuda")
    texts, made = [*CAPTIONS[:30], "", "red " * 40], prepare(folder, pictures())
    found = model.encode_images(made), model.encode_ids(tokenize(texts), tokenize.pad_id)
    assert_same_scores(found, single_features(folder, made, texts))


def train(folder: Path, num_steps: int, lr: float) -> list[float]:
    """Teach a checkpoint which captions belong to pictures of coloured shapes; return the losses."""
    network, tokenize, settings = single_network(folder), load_tokenize(str(folder)), load_settings(str(folder))
    shapes = [(colour, shape) for colour in COLOURS for shape in ("circle", "square")]
    drawn = [draw(COLOURS[c], s, seed=seed, width=40, height=40) for seed in range(16) for c, s in shapes]
    pixels = torch.from_numpy(
        stack_images(settings, prepare(folder, [np.asarray(picture) for picture in drawn])).copy()
    )
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    values = ((pixels.float() * settings.scale - mean) / std).permute(0, 3, 1, 2).contiguous().cuda()
    ids = torch.tensor(tokenize([f"a {colour} {shape}" for colour, shape in shapes])).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    labels, losses = torch.arange(len(shapes)).cuda(), []
    for step in range(num_steps):
        start = step % 16 * len(shapes)
        outputs = (
            network.get_image_features(pixel_values=values[start : start + len(shapes)]),
            network.get_text_features(input_ids=ids),
        )
        images, texts = (functional.normalize(output.pooler_output, dim=-1) for output in outputs)
        loss = functional.cross_entropy(images @ texts.T * 20, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    network.save_pretrained(folder)
    return losses


# Rounding errors average over a feature's numbers, of which the small model has 128 and every published one 512 or more.
@pytest.mark.parametrize(
    ("shape", "num_steps", "lr", "tolerance"), [("vit-tiny", 300, 1e-3, 2e-3), ("vit-b-32", 100, 1e-4, TOLERANCE)]
)
def test_trained_weights_score_as_in_single_precision(
    tmp_path: Path, shape: str, num_steps: int, lr: float, tolerance: float
) -> None:
    folder = make_clip(tmp_path / "model", CAPTIONS, shape)
    losses = train(folder, num_steps, lr)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    model, tokenize = fresh_model(folder), load_tokenize(str(folder))
    drawn = [draw(COLOURS[colour], "square", seed=seed) for seed in range(25) for colour in COLOURS]
    made = prepare(folder, [np.asarray(picture) for picture in drawn])
    texts = [f"a {colour} {shape} number {n}" for colour in COLOURS for shape in ("circle", "square") for n in range(9)]
    found = model.encode_images(made), model.encode_ids(tokenize(texts), tokenize.pad_id)
    assert_same_scores(found, single_features(folder, made, texts), tolerance)


def fresh_model(folder: Path) -> TwoTowerModel:
    """Load a model whose folder has been written again."""
    from curate.models import clip

    return clip._load_model.__wrapped__(str(folder), "")


def test_vit_b_32_scores_as_in_single_precision(tmp_path: Path) -> None:
    folder = make_clip(tmp_path / "model", CAPTIONS)
    model, tokenize = load_model(str(folder)), load_tokenize(str(folder))
    random = np.random.default_rng(0)
    smooth = [
        np.kron(random.integers(0, 256, (7, 7, 3), dtype=np.uint8), np.ones((32, 32, 1), np.uint8)) for _ in range(40)
    ]
    made = prepare(folder, [*smooth, *(random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(20))])
    found = model.encode_images(made), model.encode_ids(tokenize(CAPTIONS[:60]), tokenize.pad_id)
    assert_same_scores(found, single_features(folder, made, CAPTIONS[:60]))


def test_operators_give_columns_that_do_not_depend_on_their_tables(tmp_path: Path) -> None:
    folder = str(make("vit", tmp_path / "vit"))
    rows: list[Row] = make_rows(60)
    image, text = ClipEmbedding(model=folder), ClipTextEmbedding(model=folder)
    outputs = []
    for size in (None, 7):
        found = (
            run(image, make_inputs(image, rows), 60, batch_size=size),
            run(text, make_inputs(text, rows), 60, batch_size=size),
        )
        inputs = {
            "image_embedding": found[0].as_input("image_embedding"),
            "text_embedding": found[1].as_input("text_embedding"),
        }
        outputs.append(run(ClipScore(model=folder), inputs, 60))
    scores = [np.array(column(output, "clip_score"), dtype=float) for output in outputs]
    assert 0 < np.isnan(scores[0]).sum() < 20
    np.testing.assert_allclose(*scores, atol=TOLERANCE, equal_nan=True)


def test_many_parts_and_two_threads_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("vit", tmp_path / "vit")
    model, tokenize = load_model(str(folder)), load_tokenize(str(folder))
    random = np.random.default_rng(1)
    made = prepare(folder, [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(500)])
    chunked = pa.chunked_array([made.slice(0, 123).combine_chunks(), made.slice(123).combine_chunks()])
    ids = tokenize([CAPTIONS[n % len(CAPTIONS)][: 3 + n % 40] for n in range(500)])
    whole = model.encode_images(made), model.encode_ids(ids, tokenize.pad_id)
    monkeypatch.setattr(staging, "PART_TOKENS", 16 * 16)
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def encode() -> None:
        found.extend((model.encode_images(chunked), model.encode_ids(ids, tokenize.pad_id)) for _ in range(10))

    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for images, texts in found:
        # To the bit among themselves: a buffer that is written while it is read would show.
        np.testing.assert_array_equal(images, found[0][0])
        np.testing.assert_array_equal(texts, found[0][1])
    np.testing.assert_allclose(found[0][0], whole[0], atol=2e-3)
    np.testing.assert_allclose(found[0][1], whole[1], atol=2e-3)
    assert np.abs(np.diff(whole[0], axis=0)).max() > 0.01


def test_a_model_too_wide_for_half_precision_is_computed_in_single(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make("vit", tmp_path / "vit")
    network = copy.deepcopy(single_network(folder))
    # Residual streams of some hundred thousand, as no half can hold; norms make features of ordinary size of them.
    with torch.no_grad():
        network.vision_model.embeddings.patch_embedding.weight.mul_(1e6)
        network.text_model.embeddings.token_embedding.weight.mul_(1e7)
    network.save_pretrained(folder)
    model, tokenize = fresh_model(folder), load_tokenize(str(folder))
    made = prepare(folder, pictures())
    with caplog.at_level(logging.WARNING):
        found = model.encode_images(made), model.encode_ids(tokenize(CAPTIONS[:20]), tokenize.pad_id)
    assert any("half precision overflowed" in record.getMessage() for record in caplog.records)
    assert_same_scores(found, single_features(folder, made, CAPTIONS[:20]))
