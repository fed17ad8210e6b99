"""Safety: the complement of a head's sigmoid, or prompts."""

from pathlib import Path

import numpy as np
import pytest

from curate.models.clip import to_half
from curate.operators.safety_score import SafetyScore
from tests.contract import check_operator, column
from tests.curate.operators.test_aesthetic_score import apply, as_input, layers, write
from tests.embedding import clustered, unit
from tests.model import make_checkpoint

FINGERPRINT = "88c870a1fdae74748388e718615fc4042cf206ad8f8f1aa729c67080053c5609"


def test_contract_and_values(tmp_path: Path) -> None:
    arrays, vectors = layers(16, 8, 1), clustered(12, 5, 16)
    pinned = tmp_path / "pinned.safetensors"
    write({"weight": np.zeros((1, 2), np.float32)}, pinned)
    operator = SafetyScore(weights=write(arrays, tmp_path / "head.npz"), activation="relu")
    output = check_operator(
        operator,
        pinned=SafetyScore(weights=str(pinned)),
        fingerprint=FINGERPRINT,
        inputs=as_input(vectors),
        tolerance=1e-5,
    )
    found = column(output, "safety_score")
    wanted = 1 / (1 + np.exp(apply(arrays, unit(vectors), relu=True)))
    assert found[3] is None
    assert [value for value in found if value is not None] == pytest.approx(np.delete(wanted, 3).tolist(), abs=5e-3)


def test_a_very_unsafe_picture_is_zero_not_an_overflow(tmp_path: Path) -> None:
    arrays = {"weight": np.full((1, 2), 1e4, np.float32)}
    annotate = SafetyScore(weights=write(arrays, tmp_path / "head.npz")).load()
    import pyarrow as pa

    with np.errstate(all="raise"):
        found = annotate(pa.table({"image_embedding": to_half(np.array([[1.0, 0.0], [-1.0, 0.0]]))}))["safety_score"]
    assert [value.as_py() for value in found] == [0, 1]


def test_prompts(tmp_path: Path) -> None:
    operator = SafetyScore(model=str(make_checkpoint(tmp_path / "model")))
    assert operator.identity()["prompts"][1][0] == "a pornographic picture"
    assert [needed.name for needed in operator.requires()] == ["clip_embedding"]
