import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, log_softmax, make_outputs
from train.losses.negclip import NegCLIP
from train.losses.triplet import TripletCLIP
from train.request import Present, Text, View

LOSS = TripletCLIP()


def test_reference() -> None:
    outputs = make_outputs(LOSS.needs, 7)
    texts, negatives = array(outputs, Text()), array(outputs, LOSS.negative)
    pictures = array(outputs, LOSS.view)
    there = array(outputs, Present(LOSS.negative)) & (array(outputs, LOSS.partner) >= 0)
    assert 0 < there.sum() < 7
    pictures, own = pictures[there], negatives[there]
    rows = log_softmax(7.0 * pictures @ np.concatenate([own, texts]).T)
    expected = -(np.diag(rows) + np.diag(log_softmax(7.0 * own @ pictures.T))).mean() / 2
    terms = LOSS(outputs)
    assert terms["triplet_negative"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["triplet"].item() == pytest.approx(NegCLIP()(outputs)["negclip"].item(), rel=1e-6)


def test_without_pictures_the_second_term_is_nothing() -> None:
    outputs = make_outputs(LOSS.needs, 7, changed={LOSS.partner: torch.full((7,), -1)})
    assert LOSS(outputs)["triplet_negative"].item() == 0.0
    assert View(column="negative_uid") in LOSS.needs
