"""Scores of lists: the cosines of caption_score, text by text."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.models.clip import to_half
from curate.operators.caption_list_score import CaptionListScore
from curate.operators.clip_text_embedding import ClipTextEmbedding
from tests.contract import check_operator, column, run
from tests.embedding import unit
from tests.model import make_checkpoint

FINGERPRINT = "9b21bc395dc79ef09a8fb9f8ceb514f96059afc06696331090664c4ca5fd12d8"
LISTS: list[list[str | None] | None] = [
    ["a red circle", None, "a blue square number 7", " "],
    None,
    [],
    [None, ""],
    ["a green square"],
    ["word " * 200, "\U0001f600", "a red circle"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP folder."""
    return str(make_checkpoint(tmp_path_factory.mktemp("models") / "clip"))


def vectors(seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(len(LISTS), 24)))


def inputs() -> dict[str, Input]:
    return {
        "captions": Input.from_column(pa.array(LISTS, pa.list_(pa.string()))),
        "image_embedding": Input.from_column(to_half(vectors(0))),
        "text_embedding": Input.from_column(to_half(vectors(1))),
    }


def embed(folder: str, texts: list[str]) -> np.ndarray:
    output = run(ClipTextEmbedding(model=folder), {"alt_text": Input.from_column(pa.array(texts))}, len(texts))
    return np.array(column(output, "text_embedding"), dtype=np.float32)


def test_contract(folder: str) -> None:
    output = check_operator(CaptionListScore(model=folder), fingerprint=FINGERPRINT, inputs=inputs(), tolerance=5e-4)
    expected: list[Any] = embed(folder, ["a red circle", "a blue square number 7"]) @ vectors(0)[0]
    found = column(output, "caption_scores")
    assert found[0] == [pytest.approx(expected[0], abs=2e-3), None, pytest.approx(expected[1], abs=2e-3), None]
    assert found[1:4] == [None, [], [None, None]]
    agreement = embed(folder, ["a green square"])[0] @ vectors(1)[4]
    assert column(output, "caption_agreements")[4] == [pytest.approx(agreement, abs=2e-3)]
    assert column(output, "top_caption")[0] == (
        "a red circle" if expected[0] > expected[1] else "a blue square number 7"
    )
    assert column(output, "top_caption_score")[0] == max(value for value in found[0] if value is not None)
    assert column(output, "top_caption")[2:4] == [None, None]
    assert output.errors[1] == "no captions"


def test_the_embeddings_of_picture_and_text_are_those_of_other_operators(folder: str) -> None:
    operator = CaptionListScore(model=folder, label="own", bind={"captions": "rewrite.rewrite", "alt_text": "url"})
    image, text = operator.requires()
    assert image.label == "own_clip_embedding"
    assert text == ClipTextEmbedding(model=folder, label="own_clip_text_embedding", bind={"alt_text": "url"})
    assert Path(operator.model).is_absolute()
