"""Reading the layers of a head, and the functions that heads are made of."""

from pathlib import Path

import numpy as np
import pytest

from curate.models.head import read_layers, sigmoid


def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    # As text, 10 comes before 2.
    np.savez(path, **{"m.10.weight": np.ones((1, 3)), "m.2.weight": np.ones((3, 4)), "m.2.bias": np.arange(3.0)})
    first, second = read_layers(str(path))
    assert [weight.shape for weight, _ in (first, second)] == [(3, 4), (1, 3)]
    assert first[1].tolist() == [0, 1, 2]
    assert second[1].tolist() == [0]  # without a bias: none


def test_what_is_no_matrix_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    np.savez(path, scale=np.ones(()), norm=np.ones(4), weight=np.ones((1, 4)))
    assert [weight.shape for weight, _ in read_layers(str(path))] == [(1, 4)]


def test_sigmoid_neither_overflows_nor_leaves_its_range() -> None:
    values = np.array([-1e9, -2.0, 0.0, 2.0, 1e9])
    found = sigmoid(values)
    assert found.tolist() == pytest.approx([0, 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2)), 1])
