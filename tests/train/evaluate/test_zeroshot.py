from collections.abc import Sequence

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from train.evaluate.zeroshot import encode_classes, fill_templates, measure_zeroshot


def test_prompts_are_every_template_with_every_name() -> None:
    assert fill_templates(["cat", "dog"], ["a {c}.", "{classname}?", "no {}"]) == [
        "a cat.",
        "cat?",
        "no cat",
        "a dog.",
        "dog?",
        "no dog",
    ]
    with pytest.raises(InputError, match=r"template 'a photo' has no place for the class name; write it as \{c\}"):
        fill_templates(["cat"], ["a photo"])


def test_a_class_is_the_normalised_mean_of_its_prompts() -> None:
    vectors = {"a x": [1.0, 0.0], "b x": [0.0, 1.0], "a y": [0.6, 0.8], "b y": [1.0, 0.0]}

    def encode(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([vectors[text] for text in texts])

    classes = encode_classes(encode, ["x", "y"], ["a {c}", "b {c}"])
    assert classes[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert classes[1].tolist() == pytest.approx([0.8 / 0.8**0.5, 0.4 / 0.8**0.5])
    assert classes.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_accuracies_by_hand() -> None:
    classes = torch.eye(7)
    images = torch.tensor([
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # class 0: first
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # class 2: sixth
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # class 3: fifth
        [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0],  # class 0: a tie counts against it
    ])
    metrics = measure_zeroshot(images, classes, np.array([0, 2, 3, 0]))
    assert metrics["acc1"] == 1 / 4
    assert metrics["acc5"] == 3 / 4
    assert metrics["mean_per_class_recall"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert metrics["chance_acc1"] == pytest.approx(1 / 7)
    assert metrics["chance_acc5"] == pytest.approx(5 / 7)


def test_accuracies_are_those_of_sorting() -> None:
    rng = np.random.default_rng(0)
    images, classes = rng.normal(size=(200, 8)), rng.normal(size=(12, 8))
    labels = rng.integers(0, 12, 200)
    metrics = measure_zeroshot(torch.from_numpy(images), torch.from_numpy(classes), labels)
    order = np.argsort(-(images @ classes.T), axis=1)
    hits = order[:, 0] == labels
    assert metrics["acc1"] == pytest.approx(hits.mean())
    assert metrics["acc5"] == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())
    assert metrics["mean_per_class_recall"] == pytest.approx(np.mean([hits[labels == c].mean() for c in range(12)]))


def test_a_model_that_says_one_thing_of_everything_is_never_right() -> None:
    for features in (torch.ones(6, 2), torch.full((6, 2), torch.nan)):
        metrics = measure_zeroshot(features, torch.ones(6, 2), np.arange(6))
        assert metrics["acc1"] == metrics["acc5"] == metrics["mean_per_class_recall"] == 0.0
