import math

import pytest
import torch

from train.evaluate import embedding
from train.evaluate.embedding import measure_effective_rank, measure_embedding, measure_uniformity


def test_closed_forms() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    metrics = measure_embedding(images, texts, [[0], [1]])
    assert metrics["alignment"] == pytest.approx((4 + 0) / 2)
    assert metrics["modality_gap"] == pytest.approx(1.0)
    # Two points at a squared distance of 2.
    assert metrics["image_uniformity"] == pytest.approx(-4.0)
    assert metrics["image_effective_rank"] == pytest.approx(2.0)


def test_limits() -> None:
    point = torch.tensor([[0.6, 0.8]], dtype=torch.float64).repeat(5, 1)
    assert measure_uniformity(point) == pytest.approx(0.0)
    assert measure_effective_rank(point) == pytest.approx(1.0)
    same = measure_embedding(point, point, [[0]] * 5)
    assert (same["alignment"], same["modality_gap"]) == (0.0, 0.0)
    axes = torch.eye(8).double()
    assert measure_effective_rank(axes) == pytest.approx(8.0)
    assert measure_uniformity(axes[:1]) == 0.0


def test_uniformity_is_the_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.nn.functional.normalize(
        torch.randn(37, 4, generator=torch.Generator().manual_seed(0)), dim=1
    ).double()
    pairs = [math.exp(-2 * float((a - b).square().sum())) for i, a in enumerate(points) for b in points[:i]]
    monkeypatch.setattr(embedding, "_CHUNK", 5)
    assert measure_uniformity(points) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    monkeypatch.setattr(embedding, "MAX_POINTS", 10)
    assert measure_uniformity(points) == pytest.approx(measure_uniformity(points[::4]), abs=1e-9)
