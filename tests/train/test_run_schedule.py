"""Runs whose draws depend on columns, on earlier epochs and on the model in training: what they show, and that going on is exact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from schemas.errors import InputError, StaleDatasetError
from schemas.progress import SilentProgress
from tests.train.dataset_builder import make_uid
from tests.train.training import SCENES, TINY, read_bytes, run_training, write_scenes
from train.checkpoint import list_checkpoints
from train.config import TrainConfig
from train.distributed import World
from train.index import Dataset
from train.loader import Loader, LoaderConfig
from train.metrics import read_metrics
from train.run_schedule import CURATED_COUNTS_FILE, RunSchedule
from train.sampling import Balance, Batches, Curation, Curriculum, Feedback, Repetition, SamplingConfig
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")

# 96 samples; colour c of 4 on rows whose number % 48 is in [12 c, 12 c + 12).
COUNT = 2 * len(SCENES)
STEPS = 14
SHORT = {**TINY, "samples_seen": 16 * STEPS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of columns: a score, a source by colour, an embedding that has the two pictures of a scene as neighbours."""
    numbers = np.arange(COUNT)
    angles = 2 * np.pi * (numbers % 48) / 48
    table = {
        "uid": [make_uid(number) for number in numbers],
        "score": (numbers / COUNT).astype(np.float32),
        "source": [SCENES[number % 48][0] for number in numbers],
        "embedding": pa.array(np.stack([np.cos(angles), np.sin(angles)], 1).tolist(), pa.list_(pa.float32())),
    }
    path = tmp_path_factory.mktemp("values") / "values.parquet"
    pq.write_table(pa.table(table), path)
    return str(path)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("red disc\n\nblue bar\nred disc\n")
    return str(path)


def make_schedule(
    dataset: Path, run: Path, sampling: SamplingConfig, columns: str = "", **settings: Any
) -> RunSchedule:
    run.mkdir(exist_ok=True)
    config = TrainConfig(**{**SHORT, **settings}, sampling=sampling, columns=(columns,) if columns else ())
    return RunSchedule(Dataset.open(str(dataset), cache=str(run / "cache")), config, sampling, run, World())


def rows_of(schedule: RunSchedule, num_epochs: int) -> np.ndarray:
    return np.concatenate([schedule.batches(epoch) for epoch in range(num_epochs)])


def test_columns_come_from_the_files_of_the_configuration(dataset: Path, values: str, tmp_path: Path) -> None:
    sampling = SamplingConfig(curriculum=Curriculum(by="score", start=0.25, end=0.25, epochs=1), report_by="source")
    schedule = make_schedule(dataset, tmp_path / "run", sampling, values)
    assert rows_of(schedule, 2).min() >= 0.75 * COUNT
    # Rows 72 to 95 are scenes 24 to 47: half of them of the third colour, half of the fourth.
    found = schedule.describe(1)
    assert found["sampling/effective_sample_size"] == 24
    assert found["sampling/num_distinct"] == 24
    shares = {name: value for name, value in found.items() if name.startswith("sampling/share_")}
    assert shares == {"sampling/share_blue": 0.5, "sampling/share_yellow": 0.5}
    rows_of(schedule, 9)  # as a loader that reads ahead through short epochs
    assert schedule.describe(1) == found
    with pytest.raises(InputError, match="'score'"):
        make_schedule(dataset, tmp_path / "run", sampling)


def test_without_settings_it_shows_what_a_loader_alone_does(dataset: Path, tmp_path: Path) -> None:
    schedule = make_schedule(dataset, tmp_path / "run", SamplingConfig())
    data = Dataset.open(str(dataset), cache=str(tmp_path / "run" / "cache"))
    with Loader(data, LoaderConfig(batch_size=16, image_size=32, num_workers=0)) as loader:
        found = [batch.indices for batch in loader.batches(0, 2 * loader.steps_per_epoch)]
    np.testing.assert_array_equal(found, rows_of(schedule, 2))
    np.testing.assert_array_equal(schedule.batches(0), found[: schedule.shape.num_steps])  # asked for again
    assert schedule.describe(1) == {"sampling/effective_sample_size": COUNT, "sampling/num_distinct": COUNT}


def test_batches_of_one_source(dataset: Path, values: str, tmp_path: Path) -> None:
    schedule = make_schedule(dataset, tmp_path / "run", SamplingConfig(batches=Batches(by="source")), values)
    for batch in rows_of(schedule, 3):
        assert len({SCENES[row % 48][0] for row in batch}) == 1


def test_batches_of_neighbours_hold_both_pictures_of_a_scene(dataset: Path, values: str, tmp_path: Path) -> None:
    sampling = SamplingConfig(batches=Batches(near="embedding", size=2, candidates=3))
    near = rows_of(make_schedule(dataset, tmp_path / "near", sampling, values), 3)
    plain = rows_of(make_schedule(dataset, tmp_path / "plain", SamplingConfig()), 3)

    def num_pairs(batches: np.ndarray) -> int:
        return sum(16 - len(set((batch % 48).tolist())) for batch in batches)

    assert num_pairs(near) > 4 * num_pairs(plain)
    assert (tmp_path / "near" / "neighbours.npy").exists()


def test_ranks_share_what_one_process_shows_from_any_step_on(dataset: Path, values: str, tmp_path: Path) -> None:
    sampling = SamplingConfig(batches=Batches(by="source"), repetition=Repetition(decay=0.5))
    expected = rows_of(make_schedule(dataset, tmp_path / "run", sampling, values), 3)
    data = Dataset.open(str(dataset), cache=str(tmp_path / "run" / "cache"))
    for start in (0, 8):
        shares = []
        for rank in range(2):
            schedule = make_schedule(dataset, tmp_path / "run", sampling, values)
            settings = LoaderConfig(batch_size=16, image_size=32, num_workers=0)
            with Loader(data, settings, rank=rank, world_size=2, schedule=schedule) as loader:
                assert loader.steps_per_epoch == 6
                shares.append([batch.indices for batch in loader.batches(start, start + 5)])
        assert len(shares[0]) == 5
        np.testing.assert_array_equal(np.concatenate(shares, axis=1), expected[start : start + 5])


LIVE = {
    "feedback": SamplingConfig(feedback=Feedback(prefer="hard", power=2), report_by="source"),
    "history": SamplingConfig(
        feedback=Feedback(prefer="clean"),
        repetition=Repetition(decay=0.7),
        balance=Balance(by="source", power=0.5),
        batches=Batches(by="source"),
    ),
    "curation": SamplingConfig(curation=Curation(names="NAMES", threshold=0.9, min_ratio=0.2, every=5)),
}


class Break(SilentProgress):
    """Ends a run as abruptly as an exception can, after so many samples."""

    def __init__(self, at: int) -> None:
        self.left = at

    def advance(self, amount: int, **fields: str) -> None:
        # Opening a dataset advances too, without a loss.
        self.left -= amount if "loss" in fields else 0
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", list(LIVE))
def test_going_on_is_exact(name: str, dataset: Path, values: str, names: str, tmp_path: Path) -> None:
    sampling = LIVE[name]
    if sampling.curation:
        sampling = replace(sampling, curation=replace(sampling.curation, names=names))
    config = TrainConfig(**SHORT, columns=(values,), sampling=sampling)
    train(str(dataset), str(tmp_path / "whole" / "run"), config)
    # After step 9, which is in the second epoch; the last checkpoint is that of step 5, in the first.
    with pytest.raises(KeyboardInterrupt):
        train(str(dataset), str(tmp_path / "broken" / "run"), config, progress=Break(144))
    assert list(list_checkpoints(tmp_path / "broken" / "run")) == [5]
    train(str(dataset), str(tmp_path / "broken" / "run"), config)
    whole, resumed = read_bytes(tmp_path / "whole" / "run"), read_bytes(tmp_path / "broken" / "run")
    assert {path for path in whole if whole[path] != resumed.get(path)} == set()
    if name == "feedback":
        records = list(read_metrics(tmp_path / "whole" / "run" / "metrics.jsonl"))
        sizes = [record["sampling/effective_sample_size"] for record in records]
        assert sizes[:6] == [COUNT] * 6
        assert all(size < COUNT for size in sizes[6:])
        shares = [value for key, value in records[0].items() if key.startswith("sampling/share_")]
        assert shares == [0.25] * 4


def test_a_killed_run_that_curates_goes_on_exactly(dataset: Path, names: str, tmp_path: Path) -> None:
    curation = {"names": names, "threshold": 0.9, "min_ratio": 0.2, "every": 4}
    settings = {**SHORT, "samples_seen": 16 * 9, "sampling": {"curation": curation}}
    (tmp_path / "whole").mkdir()
    config = TypeAdapter(TrainConfig).validate_python(settings)
    train(str(dataset), str(tmp_path / "whole" / "run"), config)
    (tmp_path / "killed").mkdir()
    assert run_training(dataset, tmp_path / "killed" / "run", settings, die="96").returncode != 0
    train(str(dataset), str(tmp_path / "killed" / "run"), config)
    assert read_bytes(tmp_path / "whole" / "run") == read_bytes(tmp_path / "killed" / "run")


def test_curation_enriches_what_is_trained_on(dataset: Path, names: str, tmp_path: Path) -> None:
    sampling = SamplingConfig(curation=Curation(names=names, threshold=2.0, min_ratio=0.1, every=4))
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "samples_seen": 16 * 8}, sampling=sampling))
    weights = pq.read_table(tmp_path / "run" / CURATED_COUNTS_FILE)
    counts = weights["weight"].to_numpy()
    assert counts.sum() == 16 * 8
    captions = [f"{SCENES[number % 48][0]} {SCENES[number % 48][1]}" for number in range(COUNT)]
    wanted = np.array([caption in {"red disc", "blue bar"} for caption in captions])
    assert wanted.mean() == 0.125
    # An untrained text tower already has the names' own words nearest.
    assert counts[wanted].sum() > 0.5 * counts.sum()
    assert weights["uid"].to_pylist() == [make_uid(number) for number in range(COUNT)]
    assert Dataset.open(str(dataset)).with_weights(str(tmp_path / "run" / CURATED_COUNTS_FILE)).weights.sum() == 128


def test_a_file_that_an_earlier_epoch_wrote_is_missed(dataset: Path, values: str, tmp_path: Path) -> None:
    schedule = make_schedule(dataset, tmp_path / "run", LIVE["feedback"], values)
    with pytest.raises(StaleDatasetError, match=r"factors_000001.npy is missing, .* start a new run"):
        schedule.batches(1)
