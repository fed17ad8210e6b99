from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.progress import SilentProgress
from tests.train.dataset_builder import Sample, make_uid, write_dataset
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import flat
from train.evaluate.dataset import read_dataset
from train.evaluate.features import encode_images, encode_texts


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
