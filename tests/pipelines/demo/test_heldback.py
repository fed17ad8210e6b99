"""The evaluation sets are what the evaluation reads, hold no scene of the list, and say the truth."""

from pathlib import Path

import pytest

from curate.store import Store
from pipelines.demo.captions import PROMPTS
from pipelines.demo.heldback import CLASSES_FOLDER, NUM_CAPTIONS, RETRIEVAL_FOLDER, make_evaluation
from pipelines.demo.scenes import COLOURS, OBJECTS
from schemas.progress import SilentProgress
from train.evaluate.folder import read_folder
from train.evaluate.task import RetrievalTask, ZeroShotTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store(tmp_path_factory.mktemp("heldback"))
    make_evaluation(found, num_scenes=20, images_per_class=1, seed=0, progress=SilentProgress())
    return found


def test_the_retrieval_set_has_five_captions_per_image(folder: Store) -> None:
    (task,) = read_folder(folder.locate(RETRIEVAL_FOLDER)).tasks
    assert isinstance(task, RetrievalTask)
    assert len(task.images) == 20
    assert [len(set(own)) for own in task.captions] == [NUM_CAPTIONS] * 20


def test_the_classification_set_has_every_colour_and_object(folder: Store) -> None:
    (task,) = read_folder(folder.locate(CLASSES_FOLDER)).tasks
    assert isinstance(task, ZeroShotTask)
    assert list(task.classnames) == [f"{colour} {name}" for colour in COLOURS for name in OBJECTS]
    assert sorted(task.labels.tolist()) == list(range(len(COLOURS) * len(OBJECTS)))
    assert list(task.templates) == list(PROMPTS)
    assert all("{c}" in prompt for prompt in PROMPTS)


def test_the_same_seed_gives_the_same_bytes(folder: Store, tmp_path: Path) -> None:
    again = Store(tmp_path)
    make_evaluation(again, num_scenes=20, images_per_class=1, seed=0, progress=SilentProgress())
    for name in (RETRIEVAL_FOLDER, CLASSES_FOLDER):
        assert again.read_bytes(f"{name}/test/0.tar") == folder.read_bytes(f"{name}/test/0.tar")
