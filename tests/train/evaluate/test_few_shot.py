import numpy as np
import pytest
import torch

from train.evaluate.few_shot import RADII, fit_near, measure_near_shots


def _points(count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return unit vectors around three axes of six, a class each."""
    labels = np.arange(count) % 3
    noise = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(torch.eye(6)[:3][labels] + 0.25 * noise, dim=1), labels


# Prompts that tell the first class well and take the second for the third.
PROMPTS = torch.nn.functional.normalize(torch.eye(6)[[0, 2, 1]] + 0.05, dim=1)


def test_without_room_it_is_the_zero_shot_classifier() -> None:
    features, labels = _points(30, 0)
    fitted = fit_near(features, labels, PROMPTS, radius=0.0, bias_radius=0.0)
    torch.testing.assert_close(fitted.weight, 100 * PROMPTS.double())
    assert (fitted.bias == 0).all()
    assert (fitted.predict(features) == (features @ PROMPTS.T).argmax(dim=1).numpy()).all()


@pytest.mark.parametrize("radius", RADII)
def test_bounds_hold_and_more_room_fits_better(radius: float) -> None:
    features, labels = _points(30, 0)
    fitted = fit_near(features, labels, PROMPTS, radius=radius, bias_radius=1.0)
    assert (fitted.weight / 100 - PROMPTS.double()).norm() <= radius * (1 + 1e-9)
    assert fitted.bias.norm() <= 1 + 1e-9

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(features.double() @ weight.T + bias, torch.from_numpy(labels)))

    assert loss(fitted.weight, fitted.bias) < loss(100 * PROMPTS.double(), torch.zeros(3).double())


def test_wrong_prompts_are_mended_by_a_few_images_and_right_ones_are_kept() -> None:
    features, labels = _points(60, 1)
    tests, test_labels = _points(90, 2)
    arguments = (features, labels, tests, test_labels)
    wrong = measure_near_shots(*arguments, PROMPTS, shots=[8], num_seeds=2)
    zero_shot = float(((tests @ PROMPTS.T).argmax(dim=1).numpy() == test_labels).mean())
    assert zero_shot < 0.5
    assert wrong["zero_shot_start_8_acc1"] > 0.9
    right = torch.eye(6)[:3]
    one = measure_near_shots(*arguments, right, shots=[1], num_seeds=3)
    kept = float(((tests @ right.T).argmax(dim=1).numpy() == test_labels).mean())
    # One image of each class does not undo what the prompts say.
    assert abs(one["zero_shot_start_1_acc1"] - kept) < 0.05
    assert one["chance_zero_shot_start_1_acc1"] == pytest.approx(1 / 3)
    assert one == measure_near_shots(*arguments, right, shots=[1], num_seeds=3)
