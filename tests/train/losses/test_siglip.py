import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, make_outputs, pair_outputs
from tests.train.losses.test_info_nce import SIMILARITIES
from train.losses.siglip import SigLIP
from train.request import Text, View


def reference(cosines: np.ndarray, scale: float, bias: float) -> float:
    signs = 2 * np.eye(len(cosines)) - 1
    return float(np.log1p(np.exp(-signs * (scale * cosines + bias))).sum() / len(cosines))


def test_golden_value() -> None:
    assert SigLIP()(pair_outputs(SIMILARITIES))["siglip"].item() == pytest.approx(2.796868558, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_reference_in_chunks_of_any_size(chunk: int) -> None:
    outputs = make_outputs((View(), Text()), 9)
    loss = SigLIP(bias=-2.0, chunk=chunk)
    found = loss(outputs)["siglip"]
    expected = reference(array(outputs, View()) @ array(outputs, Text()).T, 7.0, -2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    whole = make_outputs((View(), Text()), 9)
    plain = SigLIP(bias=-2.0)
    plain(whole)["siglip"].backward()
    torch.testing.assert_close(outputs[View()].grad, whole[View()].grad)
    torch.testing.assert_close(loss.bias.grad, plain.bias.grad)


def test_memory_does_not_hold_all_pairs() -> None:
    # What is kept for the way back is the inputs, not the pairs: the largest saved tensor has n x d numbers.
    outputs = make_outputs((View(), Text()), 64)
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SigLIP(chunk=16)(outputs)
    assert max(saved) <= 64 * 16
    assert max(saved) < 64 * 64
