"""ALIP's gates: golden values, and the pool's means."""

import numpy as np
import pyarrow as pa
import pytest

from curate.operators.caption_gates import CaptionGates, gates
from schemas.errors import InputError
from tests.contract import check_pool_operator

FINGERPRINT = "94ef76e13c83b000633ec2dbf53397323b9f475f311a3b5544229a90bd0ce198"
SCORES = {"caption_agreement": [0.9, 0.5, 0.2], "alt_text_score": [0.3, 0.2, 0.1], "caption_score": [0.4, 0.35, 0.3]}


def test_golden_values() -> None:
    scores = {name: np.array(values) for name, values in SCORES.items()}
    settled = gates(scores, {"caption_agreement": 0.5, "alt_text_score": 0.2, "caption_score": 0.35})
    assert settled["language_gate"] == pytest.approx([1, 1, 0.548812], abs=1e-6)
    assert settled["alt_text_gate"] == pytest.approx([1, 1, 0.818731], abs=1e-6)
    assert settled["caption_gate"] == pytest.approx([1, 1, 0.904837], abs=1e-6)
    assert settled["gate_weight"] == pytest.approx([1, 1, 0.548812 * (0.818731 + 0.904837) / 2], abs=1e-6)
    # The first training step, when the running averages come from 1.
    first = gates(scores, {name: 0.99 + 0.01 * float(np.mean(values)) for name, values in SCORES.items()})
    assert first["language_gate"] == pytest.approx([0.826408, 0.371329, 0.203790], abs=1e-6)
    assert first["alt_text_gate"] == pytest.approx([0.250574, 0.205153, 0.167965], abs=1e-6)
    assert first["caption_gate"] == pytest.approx([0.305135, 0.276098, 0.249824], abs=1e-6)


def table(num_rows: int, missing: int, lost: int) -> pa.Table:
    random = np.random.default_rng(0)
    columns = {
        name: pa.array(
            [None if row == missing else value for row, value in enumerate(random.uniform(-0.2, 0.9, num_rows))],
            pa.float32(),
        )
        for name in SCORES
    }
    return pa.table({
        "shard": pa.array([row // 50 for row in range(num_rows)], pa.int32()),
        "row": pa.array([row % 50 for row in range(num_rows)], pa.int32()),
        "uid": [f"{row:032x}" for row in range(num_rows)],
        **columns,
        "status": ["failed_to_download" if row == lost else "success" for row in range(num_rows)],
        "error_message": pa.array(["gone" if row == lost else None for row in range(num_rows)], pa.string()),
    })


def test_histories_are_the_means_of_rows_that_have_all_scores() -> None:
    rows = table(200, missing=7, lost=11)
    found = check_pool_operator(CaptionGates(), fingerprint=FINGERPRINT, rows=rows).to_pydict()
    whole = [row for row in range(200) if row not in (7, 11)]
    scores = {name: np.array(rows[name].take(whole).to_pylist()) for name in SCORES}
    expected = gates(scores, {name: float(values.mean()) for name, values in scores.items()})
    for name, values in expected.items():
        assert [found[name][row] for row in whole] == pytest.approx(values.tolist(), rel=1e-5)
        assert found[name][7] is None
        assert found[name][11] is None
    assert found["error"][7] == "no caption_score"
    assert found["error"][11] == "no image: gone"
    assert (
        0 < min(found["language_gate"][row] for row in whole) < max(found["language_gate"][row] for row in whole) == 1
    )


def test_gamma() -> None:
    with pytest.raises(InputError, match="gamma is 0"):
        CaptionGates(gamma=0)
