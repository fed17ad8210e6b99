import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.losses.graded import GradedContrast

LOSS = GradedContrast()


def test_reference() -> None:
    outputs = make_outputs(LOSS.needs, 6)
    view, text, column = LOSS.needs
    logits, weights = 7.0 * array(outputs, view) @ array(outputs, text).T, array(outputs, column)
    losses = -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))) / 2
    assert LOSS(outputs)["graded"].item() == pytest.approx(float((weights * losses).sum() / weights.sum()), rel=1e-5)


def test_equal_grades_are_info_nce() -> None:
    outputs = make_outputs(LOSS.needs, 6, changed={LOSS.relevance: torch.full((6,), 0.3)})
    logits = 7.0 * array(outputs, LOSS.needs[0]) @ array(outputs, LOSS.needs[1]).T
    assert LOSS(outputs)["graded"].item() == pytest.approx(clip_reference(logits), rel=1e-5)


def test_a_pair_of_grade_zero_is_only_a_negative() -> None:
    grades = torch.tensor([0.0, 1.0, 1.0])
    outputs = make_outputs(LOSS.needs, 3, changed={LOSS.relevance: grades})
    logits = 7.0 * array(outputs, LOSS.needs[0]) @ array(outputs, LOSS.needs[1]).T
    losses = -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))) / 2
    assert LOSS(outputs)["graded"].item() == pytest.approx(losses[1:].mean(), rel=1e-5)
