import numpy as np
import pytest

from tests.train.losses.outputs import array, assert_gradient, clip_reference, make_outputs, pair_outputs, slopes
from tests.train.losses.test_info_nce import SIMILARITIES
from train.losses.hn_nce import HNNCE
from train.request import Text, View


def reference(logits: np.ndarray, alpha: float, beta: float) -> float:
    total, count = 0.0, len(logits)
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            negatives = np.delete(row, i)
            weights = (count - 1) * np.exp(beta * negatives) / np.exp(beta * negatives).sum()
            total -= row[i] - np.log(alpha * np.exp(row[i]) + (weights * np.exp(negatives)).sum())
    return total / (2 * count)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [(1.0, 0.0, 0.112142890), (1.0, 0.25, 0.147151973), (1.0, 0.5, 0.166582326), (0.0, 0.25, -3.151205997)],
)
def test_golden_values(alpha: float, beta: float, expected: float) -> None:
    found = HNNCE(alpha=alpha, beta=beta)(pair_outputs(SIMILARITIES))["hn_nce"].item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_reference_and_limits() -> None:
    outputs = make_outputs((View(), Text()), 9)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    assert HNNCE(alpha=0.9, beta=0.4)(outputs)["hn_nce"].item() == pytest.approx(reference(logits, 0.9, 0.4), rel=1e-5)
    assert HNNCE(beta=0.0)(outputs)["hn_nce"].item() == pytest.approx(clip_reference(logits), rel=1e-5)


def test_gradients_flow_through_the_weights() -> None:
    outputs = make_outputs((View(), Text()), 6)
    HNNCE(alpha=0.9, beta=0.4)(outputs)["hn_nce"].backward()
    images, texts = array(outputs, View()), array(outputs, Text())
    assert_gradient(outputs[View()].grad, slopes(lambda rows: reference(7.0 * rows @ texts.T, 0.9, 0.4), images))
    assert_gradient(outputs[Text()].grad, slopes(lambda rows: reference(7.0 * images @ rows.T, 0.9, 0.4), texts))


def test_one_pair_alone_has_no_loss() -> None:
    assert HNNCE()(make_outputs((View(), Text()), 1))["hn_nce"].item() == 0.0
