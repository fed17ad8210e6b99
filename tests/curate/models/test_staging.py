"""Parts of a table: every row in one of them, each of bounded size, and drawn no earlier than needed."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.models import staging
from curate.models.staging import PART_TOKENS, Feeder, cut_pictures, cut_texts, flatten_ids, pad_ids

TEXTS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), min_size=1, max_size=12)


def plain_padding(ids: Sequence[Sequence[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(row) for row in ids)
    padded, mask = np.full((len(ids), longest), pad_id), np.zeros((len(ids), longest), np.int64)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return padded, mask


@settings(max_examples=100, deadline=None)
@given(ids=TEXTS, pad_id=st.integers(0, 5), data=st.data())
def test_padding_is_what_a_loop_makes(ids: list[list[int]], pad_id: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=9))
    wanted = plain_padding([ids[row] for row in rows], pad_id)
    column = pa.array([[7, 8], *ids], pa.list_(pa.int32())).slice(1)
    half = len(ids) // 2
    chunked = pa.chunked_array([column.slice(0, half), column.slice(half)])
    for given_ids in (ids, column, chunked):
        found = pad_ids(*flatten_ids(given_ids), np.array(rows), pad_id)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 80), min_size=1, max_size=3_000))
def test_texts_are_cut_by_their_tokens(lengths: list[int]) -> None:
    array = np.array(lengths)
    parts = list(cut_texts(array, is_gpu=True))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) * array[part].max() <= PART_TOKENS for part in parts)
    ordered = array[np.concatenate(parts)]
    assert (np.diff(ordered) <= 0).all()
    (only,) = cut_texts(array, is_gpu=False)
    assert only.tolist() == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "sizes"),
    [(1, 49, [1]), (1_100, 49, [512, 512, 76]), (300, 256, [128, 128, 44]), (3, 10**6, [1, 1, 1]), (512, 49, [512])],
)
def test_pictures_are_cut_by_their_tokens(num_rows: int, num_tokens: int, sizes: list[int]) -> None:
    cuts = list(cut_pictures(num_rows, num_tokens, is_gpu=True))
    assert [cut.stop - cut.start for cut in cuts] == sizes
    assert [row for cut in cuts for row in range(cut.start, cut.stop)] == list(range(num_rows))
    assert list(cut_pictures(num_rows, num_tokens, is_gpu=False)) == [slice(0, num_rows)]


def test_a_part_is_drawn_when_the_one_before_is_under_way() -> None:
    events: list[str] = []

    def parts(feeder: Feeder) -> Iterator[dict[str, Any]]:
        for number in range(3):
            events.append(f"draw {number}")
            yield {"value": feeder.send(torch.full((2, 1), number))}

    def compute(value: torch.Tensor) -> torch.Tensor:
        events.append(f"compute {int(value[0])}")
        assert torch.is_inference_mode_enabled()
        return value * 10

    feeder = Feeder(torch.device("cpu"))
    assert feeder.run(parts(feeder), compute).tolist() == [[0], [0], [10], [10], [20], [20]]
    assert events == ["draw 0", "compute 0", "draw 1", "compute 1", "draw 2", "compute 2"]


def test_as_many_tables_as_said_are_worked_on_at_once() -> None:
    feeder, inside, lock = Feeder(torch.device("cpu")), [0, 0], threading.Lock()
    met = threading.Barrier(staging.TABLES_AT_ONCE)

    def compute(value: torch.Tensor) -> torch.Tensor:
        with lock:
            inside[0] += 1
            inside[1] = max(inside)
        met.wait(20)
        with lock:
            inside[0] -= 1
        return value

    # A multiple of the number at once: they can only get on by meeting.
    threads = [
        threading.Thread(target=feeder.run, args=([{"value": torch.zeros(1, 1)}], compute))
        for _ in range(3 * staging.TABLES_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert inside == [0, staging.TABLES_AT_ONCE]
