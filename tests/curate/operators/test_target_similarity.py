"""Cosines with targets, against a plain computation."""

from pathlib import Path

import numpy as np
import pytest

from curate.columns import Input
from curate.models.clip import to_half
from curate.operators.target_similarity import TargetSimilarity
from schemas.errors import InputError
from tests.contract import check_operator, column, run
from tests.embedding import clustered

FINGERPRINT = "1aa259ec1cff6f59fa98ca700955696e7e00bf4b6dbab5ecbf1b24b3a4c6f49f"


def as_input(vectors: np.ndarray, missing: int | None = None) -> Input:
    errors = [None if row != missing else "Image decoding error" for row in range(len(vectors))]
    return Input.from_errors(to_half(vectors if missing is None else np.delete(vectors, missing, axis=0)), errors)


def test_contract_and_values(tmp_path: Path) -> None:
    targets, vectors = clustered(40, 7, 16, seed=1), clustered(12, 5, 16)
    np.save(tmp_path / "targets.npy", 3 * targets)
    operator = TargetSimilarity(targets=str(tmp_path / "targets.npy"))
    output = check_operator(
        operator, fingerprint=FINGERPRINT, inputs={"image_embedding": as_input(vectors, missing=4)}, tolerance=1e-5
    )
    cosines = vectors @ targets.T
    rows = [row for row in range(12) if row != 4]
    for name, wanted in (
        ("target_similarity", cosines.max(axis=1)),
        ("target_norm_similarity", np.sqrt((cosines**2).sum(axis=1))),
    ):
        assert [column(output, name)[row] for row in rows] == pytest.approx(wanted[rows].tolist(), abs=2e-3)
    assert [column(output, "target_nearest")[row] for row in rows] == cosines.argmax(axis=1)[rows].tolist()
    assert column(output, "target_similarity")[4] is None


def test_many_targets_are_taken_in_blocks(tmp_path: Path) -> None:
    targets, vectors = clustered(40_000, 300, 8, seed=1), clustered(5, 5, 8)
    np.save(tmp_path / "targets.npy", targets)
    output = run(TargetSimilarity(targets=str(tmp_path / "targets.npy")), {"image_embedding": as_input(vectors)}, 5)
    cosines = vectors.astype(np.float16).astype(np.float32) @ targets.T
    assert column(output, "target_similarity") == pytest.approx(cosines.max(axis=1).tolist(), abs=2e-3)


def test_targets_of_another_model_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "targets.npy", np.ones((2, 3)))
    operator = TargetSimilarity(targets=str(tmp_path / "targets.npy"))
    with pytest.raises(InputError, match="have 3 dimensions, the pool's embeddings 8"):
        run(operator, {"image_embedding": as_input(clustered(5, 5, 8))}, 5)
