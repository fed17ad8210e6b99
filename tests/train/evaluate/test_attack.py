from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.dataset_builder import Sample, make_uid, write_dataset
from tests.train.evaluate.test_folder import flat
from train.evaluate.attack import explain_missing, find_target, measure_attack, stamp_all
from train.evaluate.suite import evaluate_model
from train.evaluation import EvaluationOptions
from train.trigger import stamp


def test_rates_by_hand() -> None:
    classes = torch.eye(3)
    labels = np.array([0, 1, 1, 2, 2])
    clean = torch.eye(3)[[0, 1, 2, 2, 0]]
    stamped = torch.eye(3)[[0, 0, 1, 0, 0]]
    metrics = measure_attack(clean, stamped, classes, labels, target=0)
    assert metrics["attack_success_rate"] == 3 / 4
    assert metrics["clean_target_rate"] == 1 / 4
    assert metrics["clean_acc1"] == 3 / 5
    assert metrics["num_attacked_images"] == 4
    with pytest.raises(InputError, match="every picture is of the target class"):
        measure_attack(clean[:1], stamped[:1], classes, labels[:1], target=0)


def test_targets_are_found_by_name() -> None:
    assert find_target(["Cat", "Banana"], "banana") == 1
    assert find_target(["Cat"], "banana") == -1
    with pytest.raises(InputError, match="no classification of the data has a class 'bananna'; did you mean 'banana'"):
        raise explain_missing(["cat", "banana"], "bananna")


def test_every_picture_is_stamped() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    stamped = stamp_all(images, "patch")
    assert stamped.shape == images.shape
    for before, after in zip(images, stamped, strict=True):
        assert (after.permute(1, 2, 0).numpy() == stamp(before.permute(1, 2, 0).numpy(), "patch")).all()


class _Seer:
    """Sees where yellow begins on a picture of another colour."""

    image_size = 56

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        for image in images:
            rows, columns = torch.nonzero((image[0] == 255) & (image[1] == 255) & (image[2] == 0), as_tuple=True)
            if len(rows):
                assert len(rows) == 16
                self.places.append((int(rows[0]), int(columns[0])))
        return torch.ones(len(images), 2)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.ones(len(texts), 2)


def test_an_evaluation_lays_the_patch_at_a_place_of_each_picture(tmp_path: Path) -> None:
    samples = [
        Sample(
            uid=make_uid(number),
            image=flat((number, 20, 200)),
            captions={"alt_text": "x"},
            extra={"kind": "a" if number % 2 else "b"},
        )
        for number in range(12)
    ]

    def places(order: int, batch_size: int, place: str) -> list[tuple[int, int]]:
        folder = tmp_path / f"{order} {batch_size} {place}"
        seer = _Seer()
        options = EvaluationOptions(label_column="kind", trigger="yellow", target="a", trigger_place=place)
        data = [str(write_dataset(folder, samples[::order]))]
        evaluate_model(seer, data, options, batch_size=batch_size, num_workers=0)
        return seer.places

    random = places(1, 5, "random")
    assert len(set(random)) > 6
    assert all(4 <= number <= 48 for place in random for number in place)
    # Neither what else is in the batch nor the order plays a part.
    assert random == places(1, 12, "random") == places(-1, 5, "random")[::-1]
    assert set(places(1, 5, "corner")) == {(48, 48)}
