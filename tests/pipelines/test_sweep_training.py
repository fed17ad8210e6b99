"""Every point of a sweep is built, trained with one budget and judged on the same data; a second time nothing is done."""

from pathlib import Path

import pytest
import yaml

from curate.axis import read_condition
from curate.executor import Executor
from curate.store import Pool
from curate.sweep import SweepConfig, sweep
from pipelines.sweep_training import TrainPointsConfig, train_points
from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset
from tests.train.training import SCENES, TINY, draw_scene


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    samples = [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_scene(number, 7)),
            captions={"alt_text": f"a {colour} {shape} on the {place}"},
        )
        for number, (colour, shape, place) in enumerate(SCENES)
    ]
    data = write_dataset(tmp_path / "held-back", samples, name="held-back")
    content = {"select": {}, "build": {}, "train": {**TINY, "batch_size": 8}, "evaluate": {"data": [str(data)]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "mine.yaml")


def test_points_are_trained_with_one_budget(
    tiny_pool: Pool, tmp_path: Path, recipe: str, ray_session: Executor
) -> None:
    report = sweep(tiny_pool, SweepConfig(axes=(read_condition("row <> 4 AND row > {1,6}"),)))
    config = TrainPointsConfig(recipe=recipe, out=str(tmp_path / "out"), samples_seen=32)
    said: list[str] = []
    comparison, scores = train_points(
        tiny_pool, report, config, executor=ray_session, progress=SilentProgress(), say=said.append
    )
    assert comparison.samples_seen == 32
    assert list(scores) == ["sweep-1", "sweep-6"]
    assert "held-back mean_recall@1" in scores["sweep-1"]
    assert all(0 <= value <= 1 for own in scores.values() for value in own.values())
    datasets = sorted(path.name for path in (tmp_path / "out" / "datasets").iterdir())
    assert [name.rpartition("-")[0] for name in datasets] == ["sweep-1", "sweep-6"]
    assert (tmp_path / "out" / "comparison.md").exists()
    assert [line.rpartition(": ")[2] for line in said] == ["done", "done"]

    again, same = train_points(
        tiny_pool, report, config, executor=ray_session, progress=SilentProgress(), say=said.append
    )
    assert [line.rpartition(": ")[2] for line in said[2:]] == ["up to date", "up to date"]
    assert same == scores
    assert again.scores() == comparison.scores()


def test_points_without_rows_are_not_trained(tiny_pool: Pool, recipe: str, ray_session: Executor) -> None:
    report = sweep(tiny_pool, SweepConfig(axes=(read_condition("row > {1,99}"),)))
    config = TrainPointsConfig(recipe=recipe, out="out")
    with pytest.raises(InputError, match="sweep-99 would keep no rows, and nothing can be trained on them"):
        train_points(tiny_pool, report, config, executor=ray_session, progress=SilentProgress())


def test_a_folder_is_needed() -> None:
    with pytest.raises(InputError, match="give --out DIR"):
        TrainPointsConfig(recipe="demo", out="")
