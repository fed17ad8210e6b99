import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from curate.tar import TarWriter
from schemas.errors import InputError
from tests.train.dataset_builder import encode_picture
from tests.train.evaluate.encoder import ColourEncoder
from train.evaluate.folder import read_folder
from train.evaluate.suite import evaluate_model
from train.evaluate.task import RetrievalTask, ZeroShotTask

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def flat(colour: tuple[int, int, int], format: str = "png") -> bytes:
    """Return a picture of one colour as a file."""
    return encode_picture(np.full((20, 30, 3), colour, dtype=np.uint8), format)


def write_folder(root: Path, tars: Sequence[Sequence[tuple[str, bytes]]], **texts: str) -> Path:
    """Write an evaluation set: the members of each tar, and the text files of the root."""
    (root / "test").mkdir(parents=True)
    for number, members in enumerate(tars):
        with (root / "test" / f"{number}.tar").open("wb") as file:
            tar = TarWriter(file)
            for name, data in members:
                tar.add(name, data)
            tar.close()
    (root / "test" / "nshards.txt").write_text(f"{len(tars)}\n")
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    return root


def _numbers(colour: tuple[int, int, int]) -> str:
    return " ".join(str(part) for part in colour)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A classification set of two tars: two red, one green and two blue pictures, of which one is labelled red."""
    return write_folder(
        tmp_path / "wds_colours_test",
        [
            [
                ("s0.png", flat(COLOURS["red"])),
                ("s0.cls", b"0"),
                ("s1.cls", b"1"),
                ("s1.webp", flat(COLOURS["green"], "webp")),
            ],
            [
                *(("a/s2.jpg", flat(COLOURS["blue"], "jpeg")), ("a/s2.cls", b"2\n")),
                *(("a/s3.png", flat(COLOURS["blue"])), ("a/s3.cls", b"0")),
                *(("b/s3.png", flat(COLOURS["red"])), ("b/s3.cls", b"0")),
            ],
        ],
        classnames="\n".join(_numbers(colour) for colour in COLOURS.values()) + "\n",
        zeroshot_classification_templates="a photo of {c}.\nart of {c}\n",
    )


def test_a_classification_set_is_read_and_evaluated(classes: Path) -> None:
    data = read_folder(str(classes))
    (task,) = data.tasks
    assert isinstance(task, ZeroShotTask)
    assert data.name == "wds_colours_test"
    assert task.labels.tolist() == [0, 1, 2, 0, 0]
    assert list(task.templates) == ["a photo of {c}.", "art of {c}"]
    model = ColourEncoder()
    (metrics,) = evaluate_model(model, [str(classes)], batch_size=2, num_workers=0).values()
    assert metrics["acc1"] == pytest.approx(4 / 5)
    assert metrics["mean_per_class_recall"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert metrics["acc5"] == 1.0
    assert metrics["chance_acc1"] == pytest.approx(1 / 3)
    assert model.batches == [2, 2, 1]
    assert len(model.texts) == 6


def test_a_retrieval_set_has_a_caption_per_line(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "set",
        [
            [("0.jpg", flat(COLOURS["red"], "jpeg")), ("0.txt", b"250 10 10\na red 240 20 20\n\n")],
            [("1.jpg", flat(COLOURS["green"], "jpeg")), ("1.txt", b"250 10 200\n")],
            [("2.jpg", flat(COLOURS["blue"], "jpeg")), ("2.txt", b"10 10 250")],
        ],
        dataset_type="retrieval\n",
    )
    (task,) = read_folder(str(folder)).tasks
    assert isinstance(task, RetrievalTask)
    assert list(task.captions) == [["250 10 10", "a red 240 20 20"], ["250 10 200"], ["10 10 250"]]
    metrics = evaluate_model(ColourEncoder(), [str(folder)], num_workers=0)["set"]
    # The green picture's caption names a pink that lies nearer to red and blue.
    assert metrics["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image_recall@1"] == pytest.approx(3 / 4)
    assert metrics["image_to_text_recall@5"] == 1.0
    assert metrics["num_captions"] == 4


def test_tars_in_the_root_are_found_too(classes: Path) -> None:
    for path in (classes / "test").iterdir():
        path.rename(classes / path.name)
    (task,) = read_folder(str(classes)).tasks
    assert len(task.images) == 5


def test_a_set_that_no_classifier_can_be_fitted_on_is_named(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_folder(str(classes), with_training=True).tasks) == 1
    assert f"no classifier is fitted, for want of a split `train` folder={classes}" in caplog.text
    shutil.copytree(classes / "test", classes / "train")
    assert len(read_folder(str(classes), with_training=True).tasks) == 2


def test_wrong_folders_are_named(tmp_path: Path, classes: Path) -> None:
    with pytest.raises(InputError, match=r"neither index\.json .* nor test/nshards\.txt and test/0\.tar"):
        read_folder(str(tmp_path))
    (classes / "classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"has classes 0 to 2, its classnames\.txt names 2"):
        read_folder(str(classes))
    (classes / "classnames.txt").unlink()
    with pytest.raises(InputError, match=r"has no classnames\.txt; a retrieval set needs a dataset_type\.txt"):
        read_folder(str(classes))
    (classes / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(InputError, match=r"5 of the 5 images of .* have no captions in a \.txt member"):
        read_folder(str(classes))
    (classes / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(InputError, match="says 'multilabel'; retrieval and classification can be evaluated"):
        read_folder(str(classes))
    (classes / "test" / "nshards.txt").write_text("many")
    with pytest.raises(InputError, match=r"holds 'many', not a number of tars"):
        read_folder(str(classes))


def test_a_set_without_class_numbers_or_images_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [[("0.png", flat(COLOURS["red"]))]], classnames="red")
    with pytest.raises(InputError, match=r"has no class number in a \.cls member"):
        read_folder(str(folder))
    folder = write_folder(tmp_path / "b", [[("0.cls", b"0")]], classnames="red")
    with pytest.raises(InputError, match="hold no images"):
        read_folder(str(folder))
    (folder / "test" / "0.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"0\.tar is not a tar or is cut off"):
        read_folder(str(folder))
