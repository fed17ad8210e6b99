import numpy as np
import pytest
import torch

from schemas.errors import InputError
from train.evaluate.attack import explain_missing, find_target, measure_attack, stamp_all
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
