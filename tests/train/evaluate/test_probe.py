import numpy as np
import pytest
import torch

from schemas.errors import InputError
from train.evaluate.probe import choose_strength, draw_shots, fit, measure_few_shot, measure_probe


def _blobs(count: int, seed: int, spread: float = 0.4) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    return torch.from_numpy(centres[labels] + spread * rng.normal(size=(count, 4))).float(), labels


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_fit_is_where_the_gradient_vanishes(strength: float) -> None:
    features, labels = _blobs(90, 0)
    found = fit(features, labels, 3, strength=strength)
    x = features.double().numpy()
    scores = x @ found.weight.numpy().T + found.bias.numpy()
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = shares - np.eye(3)[labels]
    # Of C * sum of cross-entropies + |W|^2 / 2, divided by C * n.
    assert np.abs(error.T @ x / 90 + found.weight.numpy() / (strength * 90)).max() < 1e-5
    assert np.abs(error.mean(axis=0)).max() < 1e-5


def test_a_strong_penalty_leaves_nothing_and_a_weak_one_separates() -> None:
    features, labels = _blobs(60, 1, spread=0.05)
    assert fit(features, labels, 3, strength=1e-6).weight.abs().max() < 1e-3
    assert (fit(features, labels, 3, strength=1e3).predict(features) == labels).all()


def test_the_strength_is_the_best_on_images_held_back() -> None:
    features, labels = _blobs(100, 4, spread=0.9)
    features = torch.cat([features, torch.randn(100, 60, generator=torch.Generator().manual_seed(0))], dim=1)
    strength = choose_strength(features, labels, 3, seed=5)
    held_back, kept = np.split(np.random.default_rng(5).permutation(100), [20])

    def accuracy(value: float) -> float:
        fitted = fit(features[kept], labels[kept], 3, strength=value)
        return float((fitted.predict(features[held_back]) == labels[held_back]).mean())

    assert accuracy(strength) > accuracy(1e-6)
    assert accuracy(strength) >= max(accuracy(value) for value in np.logspace(-6, 6, 96)[::16])


def test_a_probe_and_its_shots() -> None:
    features, labels = _blobs(150, 2)
    tests, test_labels = _blobs(200, 3)
    metrics = measure_probe(features, labels, tests, test_labels, 3)
    assert metrics["probe_acc1"] > 0.8
    assert metrics["chance_probe_acc1"] == pytest.approx(1 / 3)
    few = measure_few_shot(features, labels, tests, test_labels, 3, shots=[1, 20], num_seeds=4)
    assert few["shots_1_acc1"] < few["shots_20_acc1"] + 0.01
    assert few["shots_1_acc1_std"] > 0
    assert few == measure_few_shot(features, labels, tests, test_labels, 3, shots=[1, 20], num_seeds=4)


def test_a_probe_of_noise_guesses() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(300) % 3
    metrics = measure_probe(
        torch.randn(300, 4, generator=generator), labels, torch.randn(300, 4, generator=generator), labels, 3
    )
    assert 0.2 < metrics["probe_acc1"] < 0.47


def test_shots_are_so_many_of_each_class_and_nested() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 10)
    rows = draw_shots(labels, 4, seed=1)
    assert np.bincount(labels[rows]).tolist() == [4, 3, 4]
    assert set(draw_shots(labels, 2, seed=1)) <= set(rows)
    assert draw_shots(labels, 4, seed=2).tolist() != rows.tolist()


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="needs training images of two classes at least, got 1"):
        measure_probe(torch.ones(4, 2), np.zeros(4, dtype=np.int64), torch.ones(1, 2), np.zeros(1, dtype=np.int64), 2)
