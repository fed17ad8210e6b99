"""The trainer reads what `build` writes: the contract of `index.json` and the sidecars, held by both sides."""

from pathlib import Path

import numpy as np
import pytest

from curate.build import BuildConfig, build
from curate.executor import Executor
from curate.select import Selection, select
from curate.store import Pool
from schemas.errors import StaleDatasetError
from schemas.progress import SilentProgress
from tests.curate.pool_builder import annotated_pool
from tests.pool import CORRUPT_ROW
from train.evaluate.dataset import read_dataset
from train.evaluate.task import RetrievalTask
from train.index import Dataset
from train.loader import Loader, LoaderConfig

CAPTIONS = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A pool with annotations, some of whose pictures are cut off."""
    return annotated_pool(tmp_path_factory.mktemp("built") / "pool")


def _build(pool: Pool, selection: Selection, out: Path, executor: Executor, *, view: bool) -> Dataset:
    folder = select(pool, selection).folder
    config = BuildConfig(shard_size=6, view=view)
    report = build(pool, folder, str(out / "out"), config, executor=executor, progress=SilentProgress())
    dataset = Dataset.open(report.folder, cache=str(out / "cache"))
    dataset.verify()
    return dataset


@pytest.mark.parametrize("view", [False, True])
def test_builds_and_views_are_read(pool: Pool, tmp_path: Path, ray_session: Executor, *, view: bool) -> None:
    rules = {"whole": f"row != {CORRUPT_ROW}"}
    selection = Selection(name="mixed", rules=rules, weight="1 + row", captions=CAPTIONS)
    dataset = _build(pool, selection, tmp_path, ray_session, view=view)
    assert dataset.mixture.columns == ("recap.recaption", "alt_text", "recap.rewrite")
    assert len(np.unique(dataset.weights)) > 3
    with Loader(dataset, LoaderConfig(batch_size=dataset.num_samples, image_size=16, num_workers=0)) as loader:
        batch = next(loader.batches(0))
    assert batch.images.float().std() > 10
    assert any(batch.texts)
    (task,) = read_dataset(dataset.root).tasks
    assert isinstance(task, RetrievalTask)
    # Row 6 of each shard shows row 0's picture again: one image, the captions of both.
    assert len(task.images) < dataset.num_samples
    assert max(len(own) for own in task.captions) > 2


def test_a_picture_that_was_never_whole_stops_training_by_name(
    pool: Pool, tmp_path: Path, ray_session: Executor
) -> None:
    dataset = _build(pool, Selection(name="all"), tmp_path, ray_session, view=True)
    config = LoaderConfig(batch_size=dataset.num_samples, image_size=16, num_workers=0)
    with Loader(dataset, config) as loader, pytest.raises(StaleDatasetError, match=r"\.tar, member '\d+\.jpg' at byte"):
        next(loader.batches(0))
