from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import make_samples, write_dataset
from train.config import TrainConfig
from train.index import Dataset
from train.preflight import check_data, check_draws, check_evaluation, check_files, check_output, check_settings
from train.reader import TarFile
from train.sampling import Curriculum, Repetition, SamplingConfig
from train.schedule import EpochShape
from train.tower_config import TowerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 20, "grad_accumulation": 3}, "batch_size 20 does not divide into 2 processes x 3 parts"),
        ({"losses": {"info": 1.0}}, "unknown loss 'info'"),
        ({"losses": {"info_nce": -1.0}}, "the weight of loss 'info_nce' is 0 or more, got -1.0"),
        ({"losses": {"info_nce": float("nan")}}, "the weight of loss 'info_nce' is 0 or more, got nan"),
        (
            {"batch_size": 8, "losses": {"info_nce": {"groups": 3}}},
            "batch_size 8 does not divide into the losses' 3 groups",
        ),
        ({"losses": {"lit": 1.0}}, "lit locks the image tower, which would stay as random as it starts; set init"),
    ],
)
def test_settings_that_no_dataset_makes_right_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(TrainConfig(**settings), 2)


def test_a_tower_that_is_locked_comes_from_somewhere() -> None:
    for settings in (
        {"losses": {"lit": 1.0}, "init": "clip"},
        {"losses": {"lit": 1.0}, "towers": TowerConfig(image="vit")},
        {"losses": {"lit": {"embedding": "image_embedding"}}},
        {"losses": {"info_nce": 1.0, "lit": 0.0}},
    ):
        assert len(check_settings(TrainConfig(**settings), 1).losses) == 1


def test_a_run_does_not_go_among_other_files(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    check_output(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / ".lock").touch()
    check_output(tmp_path)
    (tmp_path / "index.json").touch()
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"holds index\.json, photo\.jpg and no run; give another --out folder"):
        check_output(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    check_output(tmp_path)  # somebody put a file into a run


def test_stored_embeddings_are_of_one_caption(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", make_samples(4), captions={"alt_text": 0.5, "recaption": 0.5})
    config = TrainConfig(losses={"distillation": 1.0})
    objective = check_settings(config, 1)
    with pytest.raises(InputError, match="the mixture draws from alt_text, recaption"):
        check_data(Dataset.open(str(folder), cache=str(tmp_path / "cache")), config, objective)
    alone = Dataset.open(str(folder), cache=str(tmp_path / "cache"), captions={"recaption": 1.0})
    check_data(alone, config, objective)


def draws(sampling: SamplingConfig, *, num_epochs: float, replacement: bool = True, epoch_samples: int = 100) -> None:
    shape = EpochShape(
        batch_size=10, epoch_samples=epoch_samples, replacement=replacement, seed=0, num_epochs=num_epochs
    )
    weights = np.append(np.ones(100), np.zeros(50))
    check_draws(TrainConfig(sampling=sampling, replacement=replacement), shape, weights)


def test_more_draws_than_repetition_allows_are_counted_at_once() -> None:
    sampling = SamplingConfig(repetition=Repetition(max_draws=4))
    draws(sampling, num_epochs=4)
    with pytest.raises(InputError, match=r"the run needs 410 draws, and sampling\.repetition\.max_draws leaves 400"):
        draws(sampling, num_epochs=4.1)


def test_the_narrowest_epoch_of_a_curriculum_is_foreseen() -> None:
    sampling = SamplingConfig(curriculum=Curriculum(by="score", start=1.0, end=0.3))
    draws(sampling, num_epochs=5)
    draws(sampling, num_epochs=5, replacement=False, epoch_samples=30)
    message = r"draws 31 different samples .* leaves 30 of 100 at its narrowest; set epoch_samples to 30 or less"
    with pytest.raises(InputError, match=message):
        draws(sampling, num_epochs=5, replacement=False, epoch_samples=31)


def test_tars_are_there_and_whole(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 10)
    check_files([TarFile(str(tmp_path / "a.tar"), 10), TarFile(str(tmp_path / "a.tar"))])
    with pytest.raises(StaleDatasetError, match=r"a\.tar has 10 bytes, the index says 12; copy it there again"):
        check_files([TarFile(str(tmp_path / "a.tar"), 12)])
    with pytest.raises(StaleDatasetError, match=r"b\.tar is missing"):
        check_files([TarFile(str(tmp_path / "a.tar"), 10), TarFile(f"file://{tmp_path}/b.tar", 10)])


def test_evaluation_sets_are_opened(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", make_samples(4))
    check_evaluation(TrainConfig(eval_data=(str(folder),), eval_every=5))
    with pytest.raises(InputError, match="nope does not exist; give a dataset"):
        check_evaluation(TrainConfig(eval_data=(str(folder), str(tmp_path / "nope")), eval_every=5))
