import math

import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.losses.otter import OTTER, sinkhorn
from train.request import Teacher, Text, View


def plan(cost: np.ndarray, sharpness: float, iterations: int) -> np.ndarray:
    mass = np.exp(-cost / sharpness)
    for _ in range(iterations):
        mass = mass / mass.sum(0, keepdims=True)
        mass = mass / mass.sum(1, keepdims=True)
    return mass


def test_reference() -> None:
    loss = OTTER()
    outputs = make_outputs(loss.needs, 6)
    v, t = array(outputs, Teacher(View())), array(outputs, Teacher(Text()))
    cost = -(v @ v.T + t @ t.T + v @ t.T) + 100 * np.eye(6)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    divergences = []
    for target, rows in ((plan(cost, 0.15, 5), logits), (plan(cost.T, 0.15, 5), logits.T)):
        parts = np.where(target > 0, target * (np.log(np.maximum(target, 1e-300)) - log_softmax(rows)), 0)
        divergences.append(parts.sum(1).mean())
    terms = loss(outputs)
    assert terms["otter_contrast"].item() == pytest.approx(0.5 * clip_reference(logits), rel=1e-5)
    assert terms["otter_transport"].item() == pytest.approx(0.5 * np.mean(divergences), rel=1e-4)


def test_alpha_one_is_info_nce() -> None:
    outputs = make_outputs(OTTER().needs, 6)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    assert sum(OTTER(alpha=1.0)(outputs).values()).item() == pytest.approx(clip_reference(logits), rel=1e-5)


def test_transport_is_even_and_leaves_own_pairs_out() -> None:
    cost = torch.rand(6, 6, dtype=torch.float64) + 100 * torch.eye(6, dtype=torch.float64)
    found = sinkhorn(cost, 0.15, 200)
    torch.testing.assert_close(found.sum(0), torch.ones(6, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    assert found.diag().max() < 1e-6


def test_what_training_starts_from() -> None:
    assert OTTER.initial_logit_scale == pytest.approx(math.exp(3.9))
    assert OTTER(momentum=0.9).teacher_momentum == 0.9
