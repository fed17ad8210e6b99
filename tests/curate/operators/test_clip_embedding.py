"""Image embeddings of every kind of model against transformers itself."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.images import to_column
from curate.models.preprocess import load_settings, parse_settings, prepare_images, stack_images
from curate.operators.clip_embedding import ClipEmbedding
from schemas.errors import InputError
from tests.contract import check_operator, column, picture_input, run
from tests.model import make_checkpoint, make_siglip, make_siglip2
from tests.pool import draw

REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
PINNED = ClipEmbedding(model="openai/clip-vit-base-patch32", revision=REVISION)
FINGERPRINT = "32524c5d926e18e85791c3090f173871fe91b5534adb63f4c710ab604794266d"
MAKERS = {
    "vit": make_checkpoint,
    "convnext": lambda folder: make_checkpoint(folder, image_tower="convnext"),
    "resnet": lambda folder: make_checkpoint(folder, image_tower="resnet"),
    "siglip": make_siglip,
    "navit": lambda folder: make_checkpoint(folder, image_tower="navit"),
    "siglip2": make_siglip2,
}


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


def pictures() -> list[np.ndarray]:
    shapes = [(96, 72), (72, 96), (200, 50), (33, 400), (32, 32), (20, 20), (31, 33)]
    return [
        np.asarray(draw((200, 30, 40), "circle", seed=seed, width=width, height=height))
        for seed, (width, height) in enumerate(shapes)
    ]


def embed(folder: Path) -> np.ndarray:
    inputs = {"image": picture_input(pictures())}
    output = run(ClipEmbedding(model=str(folder)), inputs, len(pictures()))
    return np.array(column(output, "image_embedding"), dtype=np.float32)


def test_contract(folder: Path) -> None:
    # Matrix products round differently for another number of rows: half a step of half precision near 0.5.
    output = check_operator(ClipEmbedding(model=str(folder)), pinned=PINNED, fingerprint=FINGERPRINT, tolerance=5e-4)
    embeddings = [row for row in column(output, "image_embedding") if row is not None]
    assert np.linalg.norm(np.array(embeddings, dtype=np.float32), axis=1) == pytest.approx(1.0, abs=1e-3)


def test_it_is_what_transformers_computes(folder: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        # One at a time: pictures of any shape come with their own number of patches.
        inputs = [processor(images=Image.fromarray(picture), return_tensors="pt") for picture in pictures()]
        outputs = [model.get_image_features(**one) for one in inputs]
    features = torch.cat([getattr(output, "pooler_output", output) for output in outputs])
    expected = torch.nn.functional.normalize(features, dim=-1).numpy()
    assert (embed(folder) * expected).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("folder", ["vit", "convnext", "resnet", "siglip"], indirect=True)
def test_pixels_are_the_processors(folder: Path) -> None:
    from transformers import AutoImageProcessor

    settings = load_settings(str(folder))
    import pyarrow as pa

    prepared = pa.chunked_array([prepare_images(settings, pa.chunked_array([to_column(pictures())]))])
    ours = stack_images(settings, prepared).transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (settings.mean, settings.std))
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    theirs = processor(images=[Image.fromarray(picture) for picture in pictures()], return_tensors="np")["pixel_values"]
    steps = np.abs((ours - mean) / std - np.asarray(theirs)) * std * 255
    assert steps.max() < 1.01
    assert steps.mean() < 0.1


def test_the_weights_are_the_identity_and_the_path_is_not(tmp_path: Path) -> None:
    import shutil

    first = make_checkpoint(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copy")
    other = make_checkpoint(tmp_path / "other", seed=1)
    identities = [ClipEmbedding(model=str(path)).identity() for path in (first, tmp_path / "copy", other)]
    assert identities[0] == identities[1]
    assert identities[0] != identities[2]


def test_a_hub_id_needs_a_commit() -> None:
    with pytest.raises(InputError, match="needs revision= with the 40 hex characters of a commit, got 'main'"):
        ClipEmbedding(model="openai/clip-vit-base-patch32", revision="main").identity()
    assert PINNED.identity() == {"model": {"model": "openai/clip-vit-base-patch32", "revision": REVISION}}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ClipEmbedding(model=str(tmp_path / "gone")).identity()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no weights"):
        ClipEmbedding(model=str(tmp_path / "empty")).identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 3}}, "has size"),
        ({"size": {"shortest_edge": 9}, "do_center_crop": False}, "neither crops nor stretches"),
        ({"size": {"height": 9, "width": 9}, "resample": 0}, "resizes with filter 0"),
        ({"size": {"height": 9, "width": 9}, "max_num_patches": 256}, "max_num_patches"),
    ],
)
def test_preprocessing_that_is_not_reproduced_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_settings(settings, "some/model")
