"""Pictures of any shape against SigLIP 2's own processor; fixed sizes are checked with the models that take them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.images import to_column
from curate.models.preprocess import (
    ImageSettings,
    fill_images,
    fit_patches,
    load_settings,
    parse_settings,
    prepare_images,
    read_config,
    stack_images,
    stack_patches,
)
from schemas.errors import InputError

NATIVE = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 20}
SHAPES = [(96, 72), (72, 96), (200, 50), (33, 400), (32, 32), (3, 2), (31, 33), (1, 900), (640, 480)]


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in SHAPES]


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 5000), width=st.integers(1, 5000), patch_size=st.integers(1, 32), most=st.integers(1, 1024)
)
@example(height=20, width=20, patch_size=16, most=256)
@example(height=1, width=1, patch_size=14, most=1024)
@example(height=5000, width=1, patch_size=16, most=5)
def test_the_grid_is_the_processors(height: int, width: int, patch_size: int, most: int) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    rows, columns = fit_patches(height, width, patch_size, most)
    wanted = get_image_size_for_max_num_patches(height, width, patch_size, most)
    assert (rows * patch_size, columns * patch_size) == wanted
    assert rows * columns <= most


@pytest.mark.parametrize("changes", [{}, {"resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]}])
def test_patches_are_the_processors(changes: dict[str, object], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**NATIVE, **changes}))
    found = load_settings(str(tmp_path), any_shape=True)
    patches, grids = _prepare(found)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(images=[Image.fromarray(picture) for picture in pictures()], return_tensors="np")
    np.testing.assert_array_equal(grids, theirs["spatial_shapes"])
    assert patches.shape[1] == grids.prod(axis=1).max() <= 20
    for own, other, (rows, columns) in zip(patches, theirs["pixel_values"], grids, strict=True):
        length = rows * columns
        theirs_in_bytes = (other[:length].reshape(length, -1, 3) * found.std + found.mean) / found.scale
        steps = np.abs(own[:length].reshape(length, -1, 3) - theirs_in_bytes)
        assert steps.max() < 1.01
        assert steps.mean() < 0.2  # Pillow takes tall pictures by rows first, others by columns, torch all by columns
        assert not own[length:].any()


def test_a_picture_does_not_depend_on_its_batch() -> None:
    found = parse_settings(NATIVE, "some/model")
    patches, grids = _prepare(found)
    for row, picture in enumerate(pictures()):
        alone, grid = stack_patches(found, pa.chunked_array([prepare_images(found, _column([picture]))]))
        np.testing.assert_array_equal(grid[0], grids[row])
        np.testing.assert_array_equal(alone[0], patches[row, : alone.shape[1]])


def test_silent_settings_are_the_processors_own() -> None:
    found = parse_settings({"image_processor_type": "Siglip2ImageProcessorFast", "patch_size": None}, "some/model")
    assert (found.patch_size, found.max_patches, found.filter) == (16, 256, "bilinear")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "leaves pictures as large as they are"),
        ({"resample": 0}, "resizes with filter 0"),
        ({"do_pad": True}, "do_pad=True"),
        ({"image_processor_type": "OtherImageProcessor"}, "max_num_patches=20"),
    ],
)
def test_what_is_not_reproduced_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_settings({**NATIVE, **changes}, "some/model")


def test_who_cannot_feed_any_shape_is_told(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(NATIVE))
    with pytest.raises(InputError, match="supported for embeddings of two-tower models only"):
        load_settings(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_damaged_configuration_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json of .* is no JSON object"):
        read_config(str(tmp_path), "", "config.json")


def test_pictures_in_any_number_of_chunks_are_put_together() -> None:
    found = parse_settings({"size": 16, "crop_size": {"height": 12, "width": 16}}, "some/model")
    whole = prepare_images(found, _column(pictures()))
    column = pa.chunked_array([whole.slice(2, 3), whole.slice(5, 0), whole.slice(5, 1), whole.slice(6)])
    out = np.zeros((7, 12, 16, 3), np.uint8)
    fill_images(found, column, out)
    np.testing.assert_array_equal(out, stack_images(found, pa.chunked_array([whole]))[2:])
    assert np.ptp(out.reshape(7, -1), axis=1).all()


def _prepare(found: ImageSettings) -> tuple[np.ndarray, np.ndarray]:
    return stack_patches(found, pa.chunked_array([prepare_images(found, _column(pictures()))]))


def _column(made: list[np.ndarray]) -> pa.ChunkedArray:
    return pa.chunked_array([to_column(made)])
