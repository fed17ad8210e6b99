import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.losses.negclip import NegCLIP
from train.request import Present, Text, View


@pytest.mark.parametrize("count", [1, 3])
def test_reference(count: int) -> None:
    loss = NegCLIP(count=count)
    outputs = make_outputs(loss.needs, 6)
    images, texts = array(outputs, View()), array(outputs, Text())
    there = array(outputs, Present(loss.negatives)).reshape(-1)
    negatives = array(outputs, loss.negatives).reshape(-1, images.shape[1])[there]
    rows = log_softmax(7.0 * images @ np.concatenate([texts, negatives]).T)
    expected = -(np.diag(rows) + np.diag(log_softmax(7.0 * texts @ images.T))).mean() / 2
    assert 0 < there.sum() < len(there)
    assert loss(outputs)["negclip"].item() == pytest.approx(expected, rel=1e-5)


def test_no_negatives_are_info_nce() -> None:
    loss = NegCLIP()
    outputs = make_outputs(loss.needs, 6, changed={Present(loss.negatives): torch.zeros(6, dtype=torch.bool)})
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    found = loss(outputs)["negclip"]
    assert found.item() == pytest.approx(clip_reference(logits), rel=1e-5)
    found.backward()
    assert outputs[loss.negatives].grad.abs().max() == 0
