"""Declaring operators, and finding them."""

import types
from dataclasses import dataclass

import pyarrow as pa
import pytest

from curate.operator import Annotate, Operator, PoolOperator, ShardOperator, discover, find_operator
from schemas.errors import ContractError


def declare(**attributes: object) -> type[Operator]:
    def load(self: ShardOperator) -> Annotate:
        return lambda batch: {}

    module = attributes.pop("module", __name__)
    return types.new_class(
        "Made", (ShardOperator,), {}, lambda body: body.update(attributes, load=load, __module__=module)
    )


def test_every_operator_is_found_under_its_own_name() -> None:
    found = discover()
    assert {"image_stats", "caption_stats", "language", "perceptual_hash", "clip_embedding", "exact_dedup"} <= set(
        found
    )
    for name, operator in found.items():
        assert operator.name == name
        assert operator.__doc__
        assert operator.version >= 1


@pytest.mark.parametrize("missing", ["version", "reads", "writes"])
def test_declarations_are_required(missing: str) -> None:
    attributes = {"name": "made", "version": 1, "reads": (), "writes": pa.schema([("x", pa.int32())])}
    del attributes[missing]
    with pytest.raises(ContractError, match=f"Made must declare '{missing}'"):
        declare(**attributes)


@pytest.mark.parametrize("column", ["uid", "error", "shard", "row"])
def test_reserved_columns_are_refused(column: str) -> None:
    with pytest.raises(ContractError, match=f"made may not write \\['{column}'\\]"):
        declare(name="made", version=1, reads=(), writes=pa.schema([(column, pa.string())]))


def test_the_file_is_named_after_the_operator() -> None:
    with pytest.raises(ContractError, match=r"operator 'made' must live in curate/operators/made.py, not other.py"):
        declare(name="made", version=1, reads=(), writes=pa.schema([]), module="curate.operators.other")


def test_a_module_holds_one_operator() -> None:
    with pytest.raises(ContractError, match=r"must define exactly one operator, found \[\]"):
        find_operator(types.ModuleType("empty"))


def test_parameters_are_the_identity() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Pooled(PoolOperator):
        """An example."""

        name = "pooled"
        version = 1
        reads = ("url",)
        writes = pa.schema([("pooled_x", pa.int32())])

        distance: int = 3

        def annotate(self, pool: object, work: object) -> object:  # type: ignore[override]
            return iter(())

    operator = Pooled(distance=4, label="near", bind={"url": "key"})
    assert operator.identity() == {"distance": 4}
    assert operator.sql_name == "near"
    assert Pooled().sql_name == "pooled"
    assert operator.requires() == ()
