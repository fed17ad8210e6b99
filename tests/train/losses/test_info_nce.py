import math

import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, make_outputs, pair_outputs
from train.losses.info_nce import InfoNCE
from train.request import Text, View

# Rows are images, columns texts.
SIMILARITIES = [[0.9, 0.1, 0.3], [0.2, 0.7, 0.4], [0.0, 0.5, 0.6]]


@pytest.mark.parametrize("local_loss", [True, False])
def test_golden_value(local_loss: bool) -> None:
    terms = InfoNCE(local_loss=local_loss)(pair_outputs(SIMILARITIES))
    assert terms["info_nce"].item() == pytest.approx(0.112142890, abs=1e-7)


def test_reference() -> None:
    outputs = make_outputs((View(), Text()), 9)
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, Text()).T)
    assert InfoNCE()(outputs)["info_nce"].item() == pytest.approx(expected, rel=1e-5)


def test_equal_features_cannot_be_told_apart() -> None:
    outputs = pair_outputs(np.ones((7, 7)) / 2)
    assert InfoNCE()(outputs)["info_nce"].item() == pytest.approx(math.log(7), abs=1e-6)


def test_both_directions_count() -> None:
    one, other = pair_outputs(SIMILARITIES), pair_outputs(np.transpose(SIMILARITIES))
    torch.testing.assert_close(InfoNCE()(one)["info_nce"], InfoNCE()(other)["info_nce"])
