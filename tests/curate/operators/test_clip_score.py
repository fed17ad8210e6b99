"""The cosine, and the two embeddings that it asks for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.models.clip import to_half
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_score import ClipScore
from curate.operators.clip_text_embedding import ClipTextEmbedding
from tests.contract import check_operator, column, run

FINGERPRINT = "84c3ccd84f6962001083c8b8db8d9d0b6a754410f418897a626541f74a1d72e3"


def as_input(vectors: np.ndarray, missing: int | None = None) -> Input:
    errors = [None if row != missing else "Image decoding error" for row in range(len(vectors))]
    kept = np.delete(vectors, missing, axis=0) if missing is not None else vectors
    return Input.from_errors(to_half(kept), errors)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_contract() -> None:
    random = np.random.default_rng(0)
    images, texts = unit(random.normal(size=(9, 16))), unit(random.normal(size=(9, 16)))
    output = check_operator(
        ClipScore(model="openai/clip-vit-base-patch32"),
        fingerprint=FINGERPRINT,
        inputs={"image_embedding": as_input(images, missing=4), "text_embedding": as_input(texts)},
    )
    expected = (images * texts).sum(axis=1)
    found = column(output, "clip_score")
    assert [found[row] for row in range(9) if row != 4] == pytest.approx(np.delete(expected, 4).tolist(), abs=2e-3)
    assert output.errors[4] == "no image_embedding: Image decoding error"


def test_golden_cosines() -> None:
    images = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]])
    inputs = {"image_embedding": as_input(images), "text_embedding": as_input(texts)}
    output = run(ClipScore(model="any"), inputs, 4)
    assert column(output, "clip_score") == pytest.approx([1.0, 0.0, -1.0, 0.96], abs=1e-3)
    assert output.columns["clip_score"].type == pa.float32()


def test_it_requires_both_embeddings_of_its_model(tmp_path: Path) -> None:
    score = ClipScore(model=str(tmp_path), label="b32", bind={"alt_text": "recap.recaption"})
    image, text = score.requires()
    assert image == ClipEmbedding(model=str(tmp_path), label="b32_clip_embedding")
    assert text == ClipTextEmbedding(
        model=str(tmp_path), label="b32_clip_text_embedding", bind={"alt_text": "recap.recaption"}
    )
    assert [operator.sql_name for operator in ClipScore(model=str(tmp_path)).requires()] == [
        "clip_embedding",
        "clip_text_embedding",
    ]
