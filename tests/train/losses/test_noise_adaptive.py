import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.losses.noise_adaptive import NoiseAdaptive


def test_reference() -> None:
    loss = NoiseAdaptive(cap=0.4)
    outputs = make_outputs(loss.needs, 6)
    logits, noise = 7.0 * array(outputs, loss.needs[0]) @ array(outputs, loss.needs[1]).T, array(outputs, loss.needs[2])
    total = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(log_softmax(matrix)):
            share = 0.4 * noise[i]
            total -= (1 - share) * row[i] + share * np.delete(row, i).mean()
    assert loss(outputs)["noise_adaptive"].item() == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize(("noise", "cap"), [(0.0, 0.5), (1.0, 0.0)])
def test_no_noise_is_info_nce(noise: float, cap: float) -> None:
    loss = NoiseAdaptive(cap=cap)
    outputs = make_outputs(loss.needs, 6, changed={loss.probability: torch.full((6,), noise)})
    logits = 7.0 * array(outputs, loss.needs[0]) @ array(outputs, loss.needs[1]).T
    assert loss(outputs)["noise_adaptive"].item() == pytest.approx(clip_reference(logits), rel=1e-5)
