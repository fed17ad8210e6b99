"""Precision and recall against a truth and a ledger made by hand."""

import pyarrow as pa
import pytest

from pipelines.demo.compare import Comparison, compare
from pipelines.demo.web import TRUTH_SCHEMA
from schemas.errors import StaleDatasetError
from schemas.selection import LEDGER_SCHEMA


def _truth(*rows: tuple[str, str, int | None]) -> pa.Table:
    return pa.Table.from_pylist([{"uid": uid, "kind": kind, "group": group} for uid, kind, group in rows], TRUTH_SCHEMA)


def _ledger(**rules: str) -> pa.Table:
    rows = [{"uid": uid, "kept": not rule, "first_failing_rule": rule or None} for uid, rule in rules.items()]
    return pa.Table.from_pylist(rows, LEDGER_SCHEMA)


def _kind(found: Comparison, kind: str) -> tuple[int, int]:
    (row,) = (row for row in found.faults if row.kind == kind)
    return row.num_rows, row.num_dropped


def test_precision_recall_and_purity() -> None:
    truth = _truth(
        ("a", "clean", None),
        ("b", "tiny", None),
        ("c", "mismatched", None),
        ("d", "throttled", None),
        ("e", "mismatched", None),
    )
    found = compare(truth, _ledger(a="top", b="small", c="top", d="", e=""))
    assert (found.num_faulty, found.num_dropped, found.num_dropped_faulty) == (3, 3, 2)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.kept_purity == pytest.approx(1 / 2)
    assert found.missed == {"e"}
    assert _kind(found, "mismatched") == (2, 1)
    assert _kind(found, "throttled") == (1, 0)
    assert {row.rule: (row.num_dropped, row.num_faulty) for row in found.rules} == {"top": (2, 1), "small": (1, 1)}


def test_a_copy_kept_in_place_of_its_original_is_no_mistake() -> None:
    truth = _truth(("a", "clean", 1), ("b", "exact_copy", 1), ("c", "near_copy", 1))
    found = compare(truth, _ledger(a="per_group", b="", c="per_group"))
    assert found.num_dropped_faulty == 2
    assert _kind(found, "clean") == (1, 0)
    assert _kind(found, "exact_copy") == (1, 1)
    assert _kind(found, "near_copy") == (1, 1)


def test_copies_beyond_the_first_that_are_kept_are_missed() -> None:
    truth = _truth(("a", "clean", 1), ("b", "exact_copy", 1), ("c", "exact_copy", 1))
    found = compare(truth, _ledger(a="", b="", c=""))
    assert _kind(found, "exact_copy") == (2, 0)
    dropped = compare(truth, _ledger(a="small", b="small", c="small"))
    assert _kind(dropped, "clean") == (1, 1)
    assert _kind(dropped, "exact_copy") == (2, 2)


def test_a_ledger_of_other_rows_is_refused() -> None:
    with pytest.raises(StaleDatasetError, match="differ in 2 of 1 rows"):
        compare(_truth(("a", "clean", None)), _ledger(b=""))
