import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, make_outputs
from train.losses.multi_text import MultiText
from train.request import Present, Text, View


@pytest.mark.parametrize("count", [1, 3])
def test_reference(count: int) -> None:
    loss = MultiText(count=count)
    outputs = make_outputs(loss.needs, 7)
    images = array(outputs, View())
    further = array(outputs, loss.texts).reshape(7, count, -1)
    there = array(outputs, Present(loss.texts)).reshape(7, count)
    assert not there.all()
    losses = [clip_reference(7.0 * images @ array(outputs, Text()).T)]
    losses += [clip_reference(7.0 * images[there[:, k]] @ further[there[:, k], k].T) for k in range(count)]
    assert loss(outputs)["multi_text"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_same_text_again_is_info_nce() -> None:
    loss = MultiText(count=2)
    outputs = make_outputs(loss.needs, 5)
    outputs.tensors[loss.texts.key] = outputs[Text()][:, None].expand(-1, 2, -1)  # type: ignore[index]
    outputs.tensors[Present(loss.texts).key] = torch.ones(5, 2, dtype=torch.bool)  # type: ignore[index]
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, Text()).T)
    assert loss(outputs)["multi_text"].item() == pytest.approx(expected, rel=1e-5)
