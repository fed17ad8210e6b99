"""Stored crops: inside their pictures, the same whoever draws them, and embedded as the teacher embeds them alone."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.images import to_column
from curate.models.clip import load_model
from curate.models.preprocess import load_settings, prepare_images
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.reinforce import Reinforce, draw_boxes
from schemas.errors import InputError
from tests.contract import NUM_ROWS, check_operator, column, make_inputs, picture_input, run
from tests.model import make_checkpoint, make_siglip2
from tests.pool import draw

REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
PINNED = Reinforce(model="openai/clip-vit-base-patch32", revision=REVISION)
FINGERPRINT = "b77adf8db604530c1d1378adeeb321c1c2cb9a02bbd9a87893f0c4556ccf03ac"
SHAPES = [(96, 72), (72, 96), (200, 50), (33, 400), (32, 32), (1, 1), (31, 33)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "vit")


def pictures() -> list[np.ndarray]:
    return [
        np.asarray(draw((200, 30, 40), "circle", seed=seed, width=max(width, 12), height=max(height, 12)))[
            :height, :width
        ]
        for seed, (width, height) in enumerate(SHAPES)
    ]


def inputs() -> dict[str, Input]:
    uids = pa.array([f"{number:032x}" for number in range(len(SHAPES))])
    return {"image": picture_input(pictures()), "uid": Input.from_column(uids)}


def found(operator: Reinforce, **settings: int) -> tuple[np.ndarray, np.ndarray]:
    output = run(operator, inputs(), len(SHAPES), **settings)
    boxes, embeddings = (column(output, name) for name in ("crop_boxes", "crop_embeddings"))
    count = operator.num_crops
    return np.array(boxes).reshape(-1, count, 4), np.array(embeddings, np.float32).reshape(len(SHAPES), count, -1)


def test_contract(folder: Path) -> None:
    operator = Reinforce(model=str(folder), num_crops=3)
    made = make_inputs(ClipEmbedding(model=str(folder)))
    made["uid"] = Input.from_column(pa.array([f"{row:032x}" for row in range(NUM_ROWS)]))
    output = check_operator(operator, pinned=PINNED, fingerprint=FINGERPRINT, inputs=made, tolerance=5e-4)
    rows = [row for row in column(output, "crop_embeddings") if row is not None]
    lengths = np.linalg.norm(np.array(rows, np.float32).reshape(len(rows), 3, -1), axis=2)
    assert lengths == pytest.approx(1.0, abs=1e-3)


def test_embeddings_are_the_teachers_of_the_crops_alone(folder: Path) -> None:
    boxes, embeddings = found(Reinforce(model=str(folder), num_crops=4, seed=2))
    settings, model = load_settings(str(folder)), load_model(str(folder), "")
    stretched = replace(settings, resize=settings.size, crop=None)
    for row, picture in enumerate(pictures()):
        for crop, (top, left, height, width) in enumerate(boxes[row]):
            alone = to_column([picture[top : top + height, left : left + width]])
            expected = model.encode_images(pa.chunked_array([prepare_images(stretched, pa.chunked_array([alone]))]))
            assert float(expected[0] @ embeddings[row, crop]) > 0.999
    # A crop is not the picture: large pictures' differ among themselves.
    assert (embeddings[0] @ embeddings[0].T).min() < 0.9999


def test_crops_are_inside_and_of_the_sizes_asked_for(folder: Path) -> None:
    boxes, _ = found(Reinforce(model=str(folder), num_crops=40, min_scale=0.25))
    for (width, height), own in zip(SHAPES, boxes, strict=True):
        assert (own[:, :2] >= 0).all()
        assert (own[:, 2:] >= 1).all()
        assert (own[:, 0] + own[:, 2] <= height).all()
        assert (own[:, 1] + own[:, 3] <= width).all()
    shares = boxes[0, :, 2] * boxes[0, :, 3] / (96 * 72)
    assert 0.23 < shares.min() < 0.45
    assert 0.8 < shares.max() <= 1
    ratios = boxes[0, :, 3] / boxes[0, :, 2]
    assert 0.72 < ratios.min() < 0.9
    assert 1.1 < ratios.max() < 1.38


def test_a_strip_that_no_crop_fits_into_keeps_its_middle() -> None:
    assert draw_boxes(33, 400, 2, 0.9, Random(0)) == [(0, 178, 33, 44)] * 2
    assert draw_boxes(400, 33, 1, 0.9, Random(0)) == [(178, 0, 44, 33)]
    assert draw_boxes(1, 1, 1, 0.08, Random(0)) == [(0, 0, 1, 1)]


def test_crops_depend_on_seed_and_uid_alone(folder: Path) -> None:
    operator = Reinforce(model=str(folder), num_crops=3)
    boxes, _ = found(operator)
    assert (found(operator, batch_size=2)[0] == boxes).all()
    assert (found(replace(operator, num_crops=2))[0] == boxes[:, :2]).all()
    assert (found(replace(operator, seed=1))[0] != boxes).any()
    # Two square pictures of about one size have crops of their own.
    assert (boxes[4] != boxes[6]).any()


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    for bad in ({"num_crops": 0}, {"min_scale": 0.0}, {"min_scale": 1.5}):
        with pytest.raises(InputError, match="num_crops is at least 1, min_scale above 0 and at most 1"):
            Reinforce(model=str(folder), **bad)
    any_shape = make_siglip2(tmp_path / "siglip2")
    with pytest.raises(InputError, match="takes pictures of any shape"):
        Reinforce(model=str(any_shape)).prepare()
