"""MetaCLIP's balance: golden values, and the rule computed row by row."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.fingerprint import fingerprint
from curate.operators.concept_balance import ConceptBalance, entry_probabilities
from schemas.errors import InputError
from tests.contract import check_pool_operator

FINGERPRINT = "02477b28b206b7d3d8c3728274359f1cddec1a3b100b792287965f668ad2b460"


def table(matches: list[list[int] | None], lost: tuple[int, ...] = ()) -> pa.Table:
    num_rows = len(matches)
    return pa.table({
        "shard": pa.array([row // 50 for row in range(num_rows)], pa.int32()),
        "row": pa.array([row % 50 for row in range(num_rows)], pa.int32()),
        "uid": [f"{row:032x}" for row in range(num_rows)],
        "metadata_matches": pa.array(matches, pa.list_(pa.int32())),
        "status": ["failed_to_download" if row in lost else "success" for row in range(num_rows)],
        "error_message": pa.array(["gone" if row in lost else None for row in range(num_rows)], pa.string()),
    })


def check(operator: ConceptBalance, rows: pa.Table) -> dict[str, list[Any]]:
    pinned = FINGERPRINT if operator == ConceptBalance() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=rows).to_pydict()


def drawn(num_rows: int = 2000) -> list[list[int] | None]:
    """Captions over 40 entries whose frequencies fall as 1 / rank."""
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 41)
    shares /= shares.sum()
    return [sorted(set(random.choice(40, random.integers(0, 5), p=shares).tolist())) for _ in range(num_rows)]


def test_golden_values() -> None:
    probabilities = entry_probabilities(np.array([100_000, 30_000, 500]), 20_000)
    assert probabilities == pytest.approx([0.2, 2 / 3, 1.0])
    assert 1 - np.prod(1 - probabilities[:2]) == pytest.approx(0.733333, abs=1e-6)


def test_rows_have_one_minus_the_product() -> None:
    matches = drawn()
    matches[7], lost = None, (3, 11)
    found = check(ConceptBalance(t=100), table(matches, lost))
    counts = np.zeros(40)
    for row, entries in enumerate(matches):
        if row not in lost:
            counts[entries or []] += 1
    for row, entries in enumerate(matches):
        if row in lost:
            assert found["concept_balance_probability"][row] is None
            assert found["is_concept_balance_kept"][row] is None
            assert found["error"][row] == "no image: gone"
            continue
        wanted = 1 - math.prod(1 - min(1, 100 / counts[entry]) for entry in entries or [])
        assert found["concept_balance_probability"][row] == pytest.approx(wanted)
        assert found["error"][row] is None
    assert counts.max() > 500


def test_a_rare_entry_keeps_its_rows_and_draws_follow_the_probability() -> None:
    found = check(ConceptBalance(), table(drawn()))
    assert set(found["concept_balance_probability"]) == {0.0, 1.0}  # no entry has 20,000 rows
    assert found["is_concept_balance_kept"] == [p == 1.0 for p in found["concept_balance_probability"]]
    few = check(ConceptBalance(t=50), table(drawn()))
    expected = sum(few["concept_balance_probability"])
    kept = sum(few["is_concept_balance_kept"])
    assert 300 < expected < 1500
    assert abs(kept - expected) < 4 * math.sqrt(expected)
    assert kept != sum(check(ConceptBalance(t=50, seed=1), table(drawn()))["is_concept_balance_kept"])


def test_t_is_found_from_a_size() -> None:
    found = check(ConceptBalance(target_size=600), table(drawn()))
    assert sum(found["concept_balance_probability"]) == pytest.approx(600, abs=1e-3)
    everything = check(ConceptBalance(target_size=10_000), table(drawn()))
    assert set(everything["concept_balance_probability"]) == {0.0, 1.0}


def test_a_pool_without_matches() -> None:
    assert check(ConceptBalance(), table([[], [], None]))["concept_balance_probability"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("parameters", "message"), [({"t": 0}, "above 0"), ({"target_size": -1}, "0 or more")])
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConceptBalance(**parameters)
