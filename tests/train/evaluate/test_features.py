from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.progress import SilentProgress
from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import flat, write_folder
from tests.train.test_model import SHAPES
from train.evaluate.dataset import read_dataset
from train.evaluate.features import encode_images, encode_texts, project_images
from train.evaluate.folder import read_folder
from train.evaluate.task import RetrievalTask
from train.model import build_model
from train.tokenizer import train_tokenizer


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_come_in_order_whatever_the_batch(tmp_path: Path, num_workers: int) -> None:
    colours = [(number * 12 % 256, 255 - number * 12, 128) for number in range(20)]
    samples = [
        Sample(
            uid=make_uid(number), image=flat(colour), captions={"alt_text": " ".join(map(str, colour))}, suffix="png"
        )
        for number, colour in enumerate(colours)
    ]
    (task,) = read_dataset(str(write_dataset(tmp_path / "set", samples, shard_size=6))).tasks
    model = ColourEncoder()
    images = encode_images(model, task.images, batch_size=7, num_workers=num_workers, progress=SilentProgress())
    assert model.batches == [7, 7, 6]
    assert images.dtype == torch.float32
    texts = encode_texts(model, [" ".join(map(str, colour)) for colour in colours], batch_size=3)
    np.testing.assert_allclose(images, texts, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_before_the_projection_are_the_towers_own(tmp_path: Path, shape: str) -> None:
    tokenizer = train_tokenizer(["a red dog", "two blue cats on a mat"] * 3, 560, 16)
    model = build_model(SHAPES[shape], tokenizer, seed=1).eval()
    samples = [Sample(uid=make_uid(n), image=flat((n * 40, 90, 200)), captions={"alt_text": str(n)}) for n in range(5)]
    (task,) = read_dataset(str(write_dataset(tmp_path / "set", samples))).tasks
    settings = {"batch_size": 2, "num_workers": 0, "progress": SilentProgress()}
    seen: list[torch.Tensor] = []

    def keep(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(pictures.clone())
        return pictures

    before = encode_images(model, task.images, before_projection=True, change=keep, **settings)  # type: ignore[arg-type]
    after = encode_images(model, task.images, **settings)  # type: ignore[arg-type]
    projected = torch.nn.functional.normalize(model.network.visual_projection(before), dim=1)
    torch.testing.assert_close(projected, after, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(project_images(model, before), after, rtol=1e-4, atol=1e-5)
    assert before.shape[1] != after.shape[1]
    # The hook is gone, and the pictures are what the model saw.
    assert not model.network.visual_projection._forward_pre_hooks
    torch.testing.assert_close(model.encode_image(torch.cat(seen)), after, rtol=1e-4, atol=1e-5)


def test_transparency_is_white_in_datasets_and_dropped_in_benchmarks(tmp_path: Path) -> None:
    clear = encode_picture(np.dstack([np.full((20, 30, 3), (250, 10, 10)), np.zeros((20, 30))]).astype(np.uint8), "png")
    samples = [Sample(uid=make_uid(0), image=clear, captions={"alt_text": "x"}, suffix="png")]
    members = [("0.png", clear), ("0.txt", b"x")]
    write_dataset(tmp_path / "set", samples)
    write_folder(tmp_path / "folder", [members], dataset_type="retrieval")
    seen = []
    for task in (read_dataset(str(tmp_path / "set")).tasks[0], read_folder(str(tmp_path / "folder")).tasks[0]):
        assert isinstance(task, RetrievalTask)
        encode_images(
            ColourEncoder(), task.images, batch_size=1, num_workers=0, progress=SilentProgress(),
            change=lambda pictures: seen.append(pictures[0, :, 8, 8].tolist()) or pictures,  # type: ignore[func-returns-value]
        )  # fmt: skip
    assert seen == [[255, 255, 255], [250, 10, 10]]


def test_a_change_is_done_to_every_picture(tmp_path: Path) -> None:
    samples = [Sample(uid=make_uid(n), image=flat((250, 10, 10)), captions={"alt_text": "x"}) for n in range(3)]
    (task,) = read_dataset(str(write_dataset(tmp_path / "set", samples))).tasks
    black = encode_images(
        ColourEncoder(),
        task.images,
        batch_size=2,
        num_workers=0,
        progress=SilentProgress(),
        change=torch.zeros_like,
    )
    expected = torch.tensor([[-0.5, -0.5, -0.5, 1.0]])
    torch.testing.assert_close(black, torch.nn.functional.normalize(expected, dim=1).expand(len(black), -1))
