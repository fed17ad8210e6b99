import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.losses.alip import ALIP
from train.request import Present, Text, View

S_TC, S_XT, S_XC = (torch.tensor(values) for values in ([0.9, 0.5, 0.2], [0.3, 0.2, 0.1], [0.4, 0.35, 0.3]))


def check(gates: tuple[torch.Tensor, ...], *expected: list[float]) -> None:
    for found, values in zip(gates, expected, strict=True):
        np.testing.assert_allclose(found.numpy(), values, atol=1e-6)


def test_golden_gates_of_the_first_step() -> None:
    loss = ALIP()
    loss._follow(S_TC, S_XT, S_XC)
    assert loss.h_tc.item() == pytest.approx(0.995333, abs=1e-6)
    check(
        loss.gates(S_TC, S_XT, S_XC),
        [0.826408, 0.371329, 0.203790],
        [0.250574, 0.205153, 0.167965],
        [0.305135, 0.276098, 0.249824],
    )


def test_golden_gates_where_the_means_have_settled() -> None:
    loss = ALIP()
    for mean, value in ((loss.h_tc, 0.5), (loss.h_xt, 0.2), (loss.h_xc, 0.35)):
        mean.fill_(value)
    check(loss.gates(S_TC, S_XT, S_XC), [1, 1, 0.548812], [1, 1, 0.818731], [1, 1, 0.904837])


def test_reference() -> None:
    loss = ALIP()
    outputs = make_outputs(loss.needs, 7, changed={Present(loss.caption): torch.ones(7, dtype=torch.bool)})
    images, texts, captions = (array(outputs, request) for request in (View(), Text(), loss.caption))
    s_tc, s_xt, s_xc = ((one * other).sum(1) for one, other in ((texts, captions), (images, texts), (images, captions)))
    h_tc, h_xt, h_xc = (0.99 + 0.01 * values.mean() for values in (s_tc, s_xt, s_xc))
    raw = np.exp(2 * (s_tc - h_tc))
    w_s = np.minimum(raw, 1)
    expected = 0.0
    for words, s, h in ((texts, s_xt, h_xt), (captions, s_xc, h_xc)):
        logits = 7.0 * images @ words.T
        losses = -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))) / 2
        expected += (w_s * np.where(raw < 1, np.exp(2 * (s - h)), 1) * losses).mean()
    assert sum(loss(outputs).values()).item() == pytest.approx(expected, rel=1e-5)
    assert loss.h_xc.item() == pytest.approx(h_xc, rel=1e-6)


def test_without_captions_it_is_info_nce() -> None:
    loss = ALIP()
    outputs = make_outputs(loss.needs, 7, changed={Present(loss.caption): torch.zeros(7, dtype=torch.bool)})
    terms = loss(outputs)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    assert terms["alip_text"].item() == pytest.approx(clip_reference(logits), rel=1e-5)
    assert terms["alip_caption"].item() == 0.0
    assert loss.h_tc.item() == 1.0
