import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import StaleDatasetError
from tests.train.dataset_builder import make_uid
from train.uids import UidOrder, parse_uids, spell_uids

TEXTS = [make_uid(number) for number in range(5)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_uids_of_every_kind_of_text_are_parsed_and_spelled(kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.array(["x", *TEXTS[:2]]).slice(1), pa.array(TEXTS[2:])]).cast(kind)
    parsed = parse_uids(column, "file")
    assert [row.tobytes().hex() for row in parsed] == TEXTS
    assert spell_uids(parsed).to_pylist() == TEXTS
    assert spell_uids(parsed[::-2]).to_pylist() == TEXTS[::-2]


@pytest.mark.parametrize("empty", [pa.chunked_array([], pa.string()), pa.chunked_array([pa.array([], pa.string())])])
def test_no_uids_are_none(empty: pa.ChunkedArray) -> None:
    assert parse_uids(empty, "file").shape == (0, 16)
    assert spell_uids(parse_uids(empty, "file")).to_pylist() == []


@pytest.mark.parametrize("bad", ["", None, "ab", "G" * 32, "A" * 32, f"{make_uid(1)[:-1]} ", make_uid(1) * 2])
def test_what_is_no_uid_is_refused(bad: str | None) -> None:
    with pytest.raises(StaleDatasetError, match="some/file has uids that are not 32 lower-case hex"):
        parse_uids(pa.chunked_array([[make_uid(0), bad]]), "some/file")


@pytest.mark.parametrize("values", [[1, 2], [None, None], [[1], [2]]])
def test_columns_of_something_else_are_refused(values: list[object]) -> None:
    with pytest.raises(StaleDatasetError, match="has uids that are not"):
        parse_uids(pa.chunked_array([pa.array(values)]), "file")


def test_rows_are_found_whatever_their_uids_begin_with() -> None:
    rng = np.random.default_rng(0)
    # Two in three begin with the same eight bytes as others.
    uids = np.concatenate([rng.integers(0, 256, (300, 16)), np.full((600, 16), 7)]).astype(np.uint8)
    uids[300:, 12] = np.arange(600) % 256
    uids[300:, 13] = np.arange(600) // 256
    uids = uids[rng.permutation(len(uids))]
    order = UidOrder.of(uids[:600])
    wanted = rng.permutation(len(uids))
    assert order.find(uids[wanted]).tolist() == np.where(wanted < 600, wanted, -1).tolist()
    assert UidOrder.of(uids[:0]).find(uids[:2]).tolist() == [-1, -1]
    assert order.find(uids[:0]).tolist() == []
