import numpy as np
import pytest

from tests.train.losses.outputs import array, make_outputs, pair_outputs
from train.losses.cyclip import CyCLIP
from train.request import Text, View


def test_reference() -> None:
    outputs = make_outputs((View(), Text()), 7)
    images, texts = array(outputs, View()), array(outputs, Text())
    in_modal = cross_modal = 0.0
    for j in range(7):
        for k in range(7):
            in_modal += (images[j] @ images[k] - texts[j] @ texts[k]) ** 2
            cross_modal += (images[j] @ texts[k] - images[k] @ texts[j]) ** 2
    terms = CyCLIP(in_modal=0.25, cross_modal=0.5)(outputs)
    assert terms["cyclip_in_modal"].item() == pytest.approx(0.25 * in_modal / 7, rel=1e-5)
    assert terms["cyclip_cross_modal"].item() == pytest.approx(0.5 * cross_modal / 7, rel=1e-5)


def test_consistent_geometry_costs_nothing() -> None:
    terms = CyCLIP()(pair_outputs(np.eye(4)))
    assert all(value.item() == 0.0 for value in terms.values())
