import math

import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_objective, make_outputs
from train.losses.otter import OTTER, sinkhorn
from train.request import Teacher, Text, View


def plan(cost: np.ndarray, sharpness: float, iterations: int) -> np.ndarray:
    mass = np.exp(-cost / sharpness)
    for _ in range(iterations):
        mass = mass / mass.sum(0, keepdims=True)
        mass = mass / mass.sum(1, keepdims=True)
    return mass


def targets(outputs) -> tuple[np.ndarray, np.ndarray]:
    v, t = array(outputs, Teacher(View())), array(outputs, Teacher(Text()))
    cost = -(v @ v.T + t @ t.T + v @ t.T) + 100 * np.eye(len(v))
    return plan(cost, 0.15, 5), plan(cost.T, 0.15, 5)


def divergence(target: np.ndarray, logits: np.ndarray) -> float:
    parts = np.where(target > 0, target * (np.log(np.maximum(target, 1e-300)) - log_softmax(logits)), 0)
    return parts.sum(1).mean()


@pytest.mark.parametrize(("log_scale", "factor"), [(3.9, math.exp(3.9)), (1.0, math.e), (5.0, 100.0)])
def test_reference(log_scale: float, factor: float) -> None:
    loss = OTTER()
    assert loss.log_scale.item() == pytest.approx(3.9)
    loss.log_scale.data.fill_(log_scale)
    outputs = make_outputs(loss.needs, 6)
    cosines = array(outputs, View()) @ array(outputs, Text()).T
    to_texts, to_images = targets(outputs)
    expected = (divergence(to_texts, factor * cosines) + divergence(to_images, factor * cosines.T)) / 2
    terms = loss(outputs)
    assert terms["otter_contrast"].item() == pytest.approx(0.5 * clip_reference(7.0 * cosines), rel=1e-5)
    assert terms["otter_transport"].item() == pytest.approx(0.5 * expected, rel=1e-4)


def test_each_part_has_a_factor_of_its_own() -> None:
    loss = OTTER()
    loss.log_scale.data.fill_(2.0)
    outputs = make_outputs(loss.needs, 6)
    cosines = array(outputs, View()) @ array(outputs, Text()).T
    sum(loss(outputs).values()).backward()

    def slope(function, point: float) -> float:
        return (function(point + 1e-5) - function(point - 1e-5)) / 2e-5

    def transport(log_scale: float) -> float:
        parts = zip(targets(outputs), (cosines, cosines.T), strict=True)
        return 0.5 * sum(divergence(target, math.exp(log_scale) * rows) for target, rows in parts) / 2

    contrast = slope(lambda scale: 0.5 * clip_reference(scale * cosines), 7.0)
    assert outputs.logit_scale.grad.item() == pytest.approx(contrast, rel=1e-4)
    assert loss.log_scale.grad.item() == pytest.approx(slope(transport, 2.0), rel=1e-3)


def test_the_teacher_follows_as_the_authors_does() -> None:
    """Theirs moves before every step, by a share that depends on how often; ours moves after it."""
    objective = make_objective({"otter": 1.0})
    towers = torch.nn.Linear(1, 1)
    towers.load_state_dict(objective.teacher.state_dict())
    student = np.array([parameter.item() for parameter in towers.parameters()])
    theirs, steps = student.copy(), np.random.default_rng(0).normal(size=(12_000, 2))
    for count, step in enumerate(steps, start=1):
        decay = min(0.999, (1 + count) / (10 + count))
        theirs -= (1 - decay) * (theirs - student)
        ours = np.array([parameter.item() for parameter in objective.teacher.parameters()])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3, err_msg=f"before step {count}")
        student = student + step if count < 20 else student + 0.01 * step
        for parameter, value in zip(towers.parameters(), student, strict=True):
            parameter.data.fill_(value)
        objective.follow(towers)
    assert objective.num_teacher_updates.item() == len(steps)


def test_a_teacher_goes_on_where_it_stopped() -> None:
    objective, again, fresh = (make_objective({"otter": 1.0}) for _ in range(3))
    towers = torch.nn.Linear(1, 1)
    for number in range(5):
        towers.weight.data.fill_(number)
        objective.follow(towers)
    again.load_state_dict(objective.state_dict())
    fresh.teacher.load_state_dict(objective.teacher.state_dict())
    for one in (objective, again, fresh):
        one.follow(towers)
    assert torch.equal(again.teacher.weight, objective.teacher.weight)
    assert not torch.allclose(fresh.teacher.weight, objective.teacher.weight, atol=1e-2)


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
    slow, quick = OTTER(), OTTER(momentum=0.5)
    assert [slow.teacher_momentum_at(number) for number in (1, 2, 10**6)] == [3 / 12, 4 / 13, 0.999]
    assert [quick.teacher_momentum_at(number) for number in (1, 100)] == [3 / 12, 0.5]
