"""Runs of several losses, or of several captions: weights of 0, stored embeddings under a mixture, what the log says of draws."""

from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError
from tests.train.losses.scenes import COLUMNS_FILE, write_rich_scenes
from tests.train.training import TINY
from train.config import TrainConfig
from train.metrics import read_metrics
from train.trainer import TrainReport, train

pytestmark = pytest.mark.usefixtures("keep_threads")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich_scenes(tmp_path_factory.mktemp("rich"))


def run(dataset: Path, out: Path, num_steps: int, **settings: object) -> TrainReport:
    columns = (str(dataset.parent / COLUMNS_FILE),)
    config = TrainConfig(**{**TINY, "samples_seen": 16 * num_steps, "columns": columns, **settings})
    return train(str(dataset), str(out), config)


def test_losses_of_weight_zero_change_nothing(dataset: Path, tmp_path: Path) -> None:
    """Not even what they ask of towers, scale and data: LiT locks the image tower, SigLIP and OTTER have scales of their own to begin with."""
    zeros = {"lit": 0.0, "siglip": 0.0, "otter": {"weight": 0.0}, "negclip": {"weight": 0.0, "negative": "not_there"}}
    reports = [
        run(dataset, tmp_path / name, 6, losses=losses)
        for name, losses in (("clip", {"info_nce": 1.0}), ("zeros", {"info_nce": 1.0, **zeros}))
    ]
    weights = [(report.checkpoint / "model.safetensors").read_bytes() for report in reports]
    assert weights[0] == weights[1]
    with pytest.raises(InputError, match="losses lit have weight 0; give one of them another"):
        run(dataset, tmp_path / "none", 6, losses={"lit": 0.0})


def test_stored_embeddings_of_one_caption_need_its_text(dataset: Path, tmp_path: Path) -> None:
    mixture = {"alt_text": 0.2, "recaption": 0.8}
    with pytest.raises(InputError, match="the mixture draws from alt_text, recaption; name the embedded one"):
        run(dataset, tmp_path / "run", 2, losses={"distillation": 1.0}, captions=mixture)
    named = {"distillation": {"weight": 1.0, "caption": "alt_text"}}
    assert run(dataset, tmp_path / "named", 2, losses=named, captions=mixture).step == 2
    # The web text only stands in for a missing recaption here.
    assert run(dataset, tmp_path / "one", 2, losses={"distillation": 1.0}, captions={"recaption": 1.0}).step == 2


def test_the_log_says_which_captions_were_drawn(dataset: Path, tmp_path: Path) -> None:
    report = run(dataset, tmp_path / "run", 24, captions={"alt_text": 0.25, "recaption": 0.75})
    records = list(read_metrics(report.run / "metrics.jsonl"))
    assert len(records) == 24
    shares = np.array([
        [record[f"sampling/caption_{name}"] for name in ("alt_text", "recaption")] for record in records
    ])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert len(set(shares[:, 0])) > 3  # each step's own
    # A tenth of the samples has no recaption.
    assert shares[:, 1].mean() == pytest.approx(0.75 * 0.9, abs=0.08)
    assert {record["sampling/effective_sample_size"] for record in records} == {96.0}
    assert {record["sampling/num_distinct"] for record in records} == {96.0}
