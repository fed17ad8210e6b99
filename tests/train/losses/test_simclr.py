import numpy as np
import pytest

from tests.train.losses.outputs import array, log_softmax, make_objective, make_outputs

OPTIONS = {"hidden": 16, "width": 6, "temperature": 0.2}


def project(projector, rows: np.ndarray) -> np.ndarray:
    for number, layer in enumerate(projector.layers):
        rows = rows @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if number < len(projector.layers) - 1:
            rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
            rows = np.maximum(rows, 0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_reference() -> None:
    loss = make_objective({"simclr": OPTIONS}).losses["simclr"]
    outputs = make_outputs(loss.needs, 6)
    both = np.concatenate([project(loss.projector, array(outputs, view)) for view in loss.views])
    logits = both @ both.T / 0.2
    np.fill_diagonal(logits, -np.inf)
    rows = log_softmax(logits)
    expected = -np.mean([rows[i, (i + 6) % 12] for i in range(12)])
    assert loss(outputs)["simclr"].item() == pytest.approx(expected, rel=1e-4)


def test_two_augmented_views_are_asked_for() -> None:
    loss = make_objective({"simclr": OPTIONS}).losses["simclr"]
    assert [view.view.number for view in loss.needs] == [1, 2]
