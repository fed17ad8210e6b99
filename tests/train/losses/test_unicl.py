import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.losses.unicl import UniCL

LOSS = UniCL()


def loss_of(labels: list[int]) -> tuple[float, np.ndarray]:
    outputs = make_outputs(LOSS.needs, len(labels), changed={LOSS.label: torch.tensor(labels)})
    view, text, _ = LOSS.needs
    return LOSS(outputs)["unicl"].item(), 7.0 * array(outputs, view) @ array(outputs, text).T


def test_reference() -> None:
    labels = np.array([2, -1, 2, 0, -1, 0, 2])
    found, logits = loss_of(labels.tolist())
    total = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(log_softmax(matrix)):
            matches = [j for j in range(7) if j == i or (labels[j] == labels[i] and labels[i] >= 0)]
            total -= row[matches].mean()
    assert found == pytest.approx(total / 14, rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [-1] * 5])
def test_labels_of_their_own_are_info_nce(labels: list[int]) -> None:
    found, logits = loss_of(labels)
    assert found == pytest.approx(clip_reference(logits), rel=1e-5)
