import numpy as np
import pytest

from schemas.errors import InputError
from tests.train.losses.outputs import array, log_softmax, make_objective, make_outputs
from train.losses.catlip import CatLIP
from train.request import Pooled, Text, wanted_texts


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_reference(kind: str) -> None:
    objective = make_objective({"catlip": {"kind": kind}})
    loss = objective.losses["catlip"]
    outputs = make_outputs(loss.needs, 6)
    logits = array(outputs, Pooled()) @ loss.head.weight.detach().numpy().T + loss.head.bias.detach().numpy()
    targets = np.zeros_like(logits)
    for row, ids in zip(targets, array(outputs, loss.labels), strict=True):
        row[ids[ids >= 0]] = 1
    assert 0 < targets.sum() < targets.size
    if kind == "bce":
        expected = (np.log1p(np.exp(logits)) - targets * logits).mean()
    else:
        expected = -(targets / np.maximum(targets.sum(1, keepdims=True), 1) * log_softmax(logits)).sum(1).mean()
    assert loss(outputs)["catlip"].item() == pytest.approx(expected, rel=1e-5)


def test_no_text_is_asked_for() -> None:
    assert wanted_texts(CatLIP().needs) == ()
    assert Text() not in CatLIP().needs


def test_other_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="kind is bce or ce, got 'mse'"):
        CatLIP(kind="mse")
