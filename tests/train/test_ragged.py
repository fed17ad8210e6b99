import numpy as np

from train.ragged import Ragged


def test_lists_are_padded_to_the_longest_of_all() -> None:
    ragged = Ragged.of([[3, 1], [], [7], [1, 2, 3]], np.int32, -1)
    assert (len(ragged), ragged.width) == (4, 3)
    taken = ragged.take(np.array([2, 0, 1, 2]))
    assert taken.dtype == np.int32
    assert taken.tolist() == [[7, -1, -1], [3, 1, -1], [-1, -1, -1], [7, -1, -1]]


def test_without_lists_there_is_one_empty_place() -> None:
    ragged = Ragged.of([[], []], np.float32, 0)
    assert ragged.take(np.array([1])).tolist() == [[0.0]]
    assert ragged.take(np.array([], dtype=np.int64)).shape == (0, 1)
