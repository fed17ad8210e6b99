"""A run that shows stored crops and learns what a teacher said of each: `reinforce`, `train.crop_boxes` and `distillation` together."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curate.columns import Input
from curate.operators.reinforce import Reinforce
from schemas.errors import InputError
from tests.contract import column, picture_input, run
from tests.model import make_checkpoint
from tests.train.dataset_builder import make_uid
from tests.train.training import SCENES, TINY, draw_scene, write_scenes
from train.columns import SampleColumns, open_columns
from train.config import TrainConfig
from train.crop import choose_crop
from train.index import Dataset
from train.inputs import InputMaker
from train.loader import Loader, LoaderConfig
from train.losses.distillation import StoredDistillation
from train.metrics import read_metrics
from train.model import load_model
from train.request import wanted_columns
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")

COUNT, CROPS = 2 * len(SCENES), 3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


@pytest.fixture(scope="module")
def columns(teacher: Path, dataset: Path) -> Path:
    """What the operator stores of every picture, and the teacher's embeddings of the texts."""
    uids = [make_uid(number) for number in range(COUNT)]
    pictures = [draw_scene(number, number // len(SCENES)) for number in range(COUNT)]
    given = {"uid": Input.from_column(pa.array(uids)), "image": picture_input(pictures)}
    output = run(Reinforce(model=str(teacher), num_crops=CROPS, min_scale=0.5), given, COUNT)
    texts = [f"a {colour} {shape} on the {place}" for colour, shape, place in SCENES] * 2
    with torch.no_grad():
        embeddings = load_model(teacher).encode_text(texts).tolist()
    path = dataset.parent / "columns.parquet"
    stored = {name: column(output, name) for name in ("crop_boxes", "crop_embeddings")}
    pq.write_table(pa.table({"uid": uids, "teacher_text_embedding": embeddings, **stored}), path)
    return path


def opened(dataset: Path, columns: Path) -> tuple[Dataset, StoredDistillation, SampleColumns]:
    loss = StoredDistillation(image="crop_embeddings", crops=True)
    data = Dataset.open(str(dataset), cache=str(dataset.parent / "cache"))
    found = open_columns(data, wanted_columns(loss.needs), [str(columns)], crop_boxes="crop_boxes")
    return data, loss, found


def test_the_loss_reads_the_embedding_of_the_crop_that_is_shown(dataset: Path, columns: Path, teacher: Path) -> None:
    data, loss, found = opened(dataset, columns)
    stored = pq.read_table(columns).to_pydict()
    embeddings = np.array(stored["crop_embeddings"], np.float32).reshape(COUNT, CROPS, -1)
    maker = InputMaker(load_model(teacher), loss.needs, found, torch.device("cpu"))
    config = LoaderConfig(batch_size=16, image_size=32, num_workers=0)
    shown = set()
    with Loader(data, config, crop_boxes=found.crop_boxes) as loader:
        for batch in loader.batches(0, 12):
            crops = choose_crop(batch.seeds, CROPS)
            shown |= set(zip(batch.indices.tolist(), crops.tolist(), strict=True))
            inputs = maker.make(batch)
            np.testing.assert_array_equal(inputs.fields[loss.image.key].numpy(), embeddings[batch.indices, crops])
    assert len({crop for _, crop in shown}) == CROPS
    assert len(shown) > COUNT


def test_a_run_learns(dataset: Path, columns: Path, tmp_path: Path) -> None:
    settings = {
        **TINY,
        "losses": {"distillation": {"image": "crop_embeddings", "crops": True, "clip": 1.0}},
        "columns": [str(columns)],
        "crop_boxes": "crop_boxes",
        "samples_seen": 16 * 40,
        "save_every": 20,
    }
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings))
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1


def test_embeddings_of_crops_are_no_embedding(dataset: Path, columns: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"crops": True}, "'crop_embeddings' is read as embeddings of stored crops, and the run shows none"),
        ({}, "distillation needs embeddings of one width"),
    ):
        config = TrainConfig(**{
            **TINY,
            "losses": {"distillation": {"image": "crop_embeddings", **wrong}},
            "columns": [str(columns)],
        })
        with pytest.raises(InputError, match=message):
            train(str(dataset), str(tmp_path / "run"), config)
