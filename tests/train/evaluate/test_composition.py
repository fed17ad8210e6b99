from collections.abc import Sequence

import pytest
import torch

from train.evaluate.composition import composition_means, measure_composition

VECTORS = {"right": [1.0, 0.0], "near": [0.9, 0.4], "far": [0.0, 1.0], "same": [1.0, 0.0], "nan": [float("nan"), 0.0]}


def _encode(texts: Sequence[str]) -> torch.Tensor:
    assert len(set(texts)) == len(texts)
    return torch.tensor([VECTORS[text] for text in texts])


def test_an_image_is_right_when_its_caption_beats_every_negative() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    negatives = [{"order": ["far", "near"], "attribute": ["near"]}, {"order": ["far"]}, {"attribute": [], "order": []}]
    metrics = measure_composition(images, _encode, ["right", "right", "right"], negatives)
    assert metrics["composition_order"] == 0.5
    assert metrics["chance_composition_order"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert metrics["composition_attribute"] == 1.0
    assert metrics["num_composition_attribute"] == 1
    means = composition_means({**metrics, "num_images": 3.0})
    assert means["composition_mean"] == pytest.approx(0.75)
    assert means["chance_composition_mean"] == pytest.approx((5 / 12 + 1 / 2) / 2)
    assert composition_means({"num_images": 3.0}) == {}


def test_ties_and_what_is_no_number_count_against_the_model() -> None:
    image = torch.tensor([[1.0, 0.0]])
    assert measure_composition(image, _encode, ["right"], [{"order": ["same"]}])["composition_order"] == 0.0
    assert measure_composition(image, _encode, ["nan"], [{"order": ["far"]}])["composition_order"] == 0.0
    assert measure_composition(image, _encode, ["right"], [{}]) == {}
