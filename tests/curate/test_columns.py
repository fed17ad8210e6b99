"""Inputs with gaps, batches, and the check of what operators return."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Batches, Input, Output, check_result, gather, scatter
from curate.operator import Annotate, Resources, ShardOperator
from schemas.errors import ContractError


@dataclass(frozen=True, kw_only=True)
class Example(ShardOperator):
    """Reads a required and a nullable column."""

    name = "example"
    version = 1
    reads = ("a", "b")
    nullable = ("b",)
    writes = pa.schema([("x", pa.int32()), ("v", pa.list_(pa.float16()))])
    resources = Resources(batch_size=2)

    def load(self) -> Annotate:
        return lambda batch: {}


def inputs(a: list[int | None], b: list[int | None]) -> dict[str, Input]:
    return {"a": Input.from_column(pa.array(a, pa.int32())), "b": Input.from_column(pa.array(b, pa.int32()))}


def test_rows_without_a_required_input_are_left_out() -> None:
    batches = gather(Example(), inputs([1, None, 3, 4, None, 6], [None, 2, 3, None, 5, 6]), 6)
    assert [table.to_pydict() for table in batches.tables] == [
        {"a": [1, 3], "b": [None, 3]},
        {"a": [4, 6], "b": [None, 6]},
    ]
    assert batches.errors == [None, "no a", None, None, "no a", None]


def test_reasons_are_handed_on() -> None:
    column = pa.array([None, 2], pa.int32())
    found = {"a": Input.from_column(column, ["gone", None]), "b": Input.from_column(column)}
    assert gather(Example(), found, 2).errors == ["no a: gone", None]


def test_outputs_return_to_their_rows() -> None:
    batches = gather(Example(), inputs([1, None, 3, 4], [1, 1, 1, 1]), 4)
    results = [{"x": [1, 3], "v": np.array([[1, 2], [3, 4]]), "error": [None, "bad"]}, {"x": [4], "v": [[0.5]]}]
    output = scatter(Example(), batches, results)
    assert output.columns["x"].to_pylist() == [1, None, 3, 4]
    assert output.columns["v"].to_pylist() == [[1, 2], None, [3, 4], [0.5]]
    assert output.errors == [None, "no a", "bad", None]


def test_no_rows_at_all() -> None:
    batches = gather(Example(), inputs([None, None], [1, 1]), 2)
    assert batches.tables == []
    output = scatter(Example(), batches, [])
    assert output.columns["x"].to_pylist() == [None, None]
    assert output.columns["v"].type == pa.list_(pa.float16())


def test_parts_put_together_are_the_whole() -> None:
    a = [1, None, 3, 4, None, None, 7, 8, 9]
    whole = inputs(a, a)
    cuts = [(0, 2), (2, 2), (2, 6), (6, 9)]
    parts = [{name: found.slice(*cut) for name, found in whole.items()} for cut in cuts]
    joined = Input.concat([part["a"] for part in parts])
    assert joined.values.equals(whole["a"].values)
    assert np.array_equal(joined.valid, whole["a"].valid)
    expected = gather(Example(), whole, len(a))
    pieces = [gather(Example(), part, stop - start) for part, (start, stop) in zip(parts, cuts, strict=True)]
    batches = Batches.concat(pieces, Example.resources.batch_size)
    # The same batches, wherever the parts ended.
    assert [table.to_pydict() for table in batches.tables] == [table.to_pydict() for table in expected.tables]
    assert batches.errors == expected.errors
    outputs = [Output(columns={"x": pa.array([n])}, errors=[None]) for n in range(3)]
    assert Output.concat(outputs).columns["x"].to_pylist() == [0, 1, 2]


def test_an_output_is_cut_by_rows() -> None:
    output = Output(columns={"x": pa.array([1, None, 3, 4])}, errors=[None, "no a", None, "odd"])
    cut = output.slice(1, 3)
    assert (cut.columns["x"].to_pylist(), cut.errors) == ([None, 3], ["no a", None])
    again = Output.concat([output.slice(0, 1), cut, output.slice(3, 4)])
    assert again.columns["x"].equals(output.columns["x"])
    assert again.errors == output.errors


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"x": [1, 2]}, r"example must write \['x', 'v'\] for 2 rows, got x for 2"),
        ({}, r"for 2 rows, got nothing"),
        ({"x": [1, 2], "v": [[1], [2]], "y": [1, 2]}, "got x for 2, v for 2, y for 2"),
        ({"x": [1], "v": [[1], [2]]}, "got x for 1, v for 2"),
        ({"x": ["a", "b"], "v": [[1], [2]]}, "example must write x as int32"),
        ({"x": pa.array([1, 2], pa.int64()), "v": [[1], [2]]}, "example must write x as int32, got int64"),
        ({"x": [2**40, 1], "v": [[1], [2]]}, "example must write x as int32"),
        ({"x": [1, 2], "v": [[1], [2]], "error": [None, 3]}, "example must write 'error' as text or None, got 3"),
        ({"x": [1, 2], "v": [[1], [2]], "error": [None]}, "error for 1"),
    ],
)
def test_the_contract_is_checked(result: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_result(Example(), result, 2)
