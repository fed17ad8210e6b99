"""Three cosines, and where their embeddings come from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.models.clip import to_half
from curate.operator import Operator
from curate.operators.caption_score import CaptionScore
from curate.operators.clip_score import ClipScore
from curate.operators.sub_captions import SubCaptions
from curate.plan import Planned, make_plan
from curate.store import Pool
from schemas.errors import MissingColumnsError
from schemas.sample import sample_schema
from tests.contract import check_operator, column, run
from tests.embedding import unit
from tests.model import make_checkpoint

FINGERPRINT = "1a7a3e379f1cacf9fc6ba98ef81ed41ec9415daf3bd93b833bcea83cee414518"


def as_input(vectors: np.ndarray, missing: int | None = None) -> Input:
    errors = [None if row != missing else "Image decoding error" for row in range(len(vectors))]
    kept = np.delete(vectors, missing, axis=0) if missing is not None else vectors
    return Input.from_errors(to_half(kept), errors)


def texts(num_rows: int) -> Input:
    return Input.from_column(pa.array([f"a dog {row}" for row in range(num_rows)]))


def test_contract() -> None:
    random = np.random.default_rng(0)
    image, text, caption = (unit(random.normal(size=(9, 16))) for _ in range(3))
    output = check_operator(
        CaptionScore(model="any"),
        fingerprint=FINGERPRINT,
        inputs={
            "recaption": texts(9),
            "image_embedding": as_input(image, missing=4),
            "text_embedding": as_input(text),
            "recaption_embedding": as_input(caption),
        },
    )
    for name, left, right in (
        ("caption_score", image, caption),
        ("alt_text_score", image, text),
        ("caption_agreement", text, caption),
    ):
        found = column(output, name)
        assert found[4] is None
        expected = (left * right).sum(axis=1)
        assert [found[row] for row in range(9) if row != 4] == pytest.approx(np.delete(expected, 4).tolist(), abs=2e-3)
    assert output.errors[4] == "no image_embedding: Image decoding error"


def test_golden_cosines() -> None:
    image, text, caption = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[0.6, 0.8]])
    inputs = {"image_embedding": image, "text_embedding": text, "recaption_embedding": caption}
    output = run(
        CaptionScore(model="any"),
        {"recaption": texts(1), **{name: as_input(vectors) for name, vectors in inputs.items()}},
        1,
    )
    assert column(output, "caption_score") == pytest.approx([0.6], abs=1e-3)
    assert column(output, "alt_text_score") == pytest.approx([0.0], abs=1e-3)
    assert column(output, "caption_agreement") == pytest.approx([0.8], abs=1e-3)


def plan(pool: Pool, *operators: Operator) -> dict[str, Planned]:
    return {label: planned for planned in make_plan(pool, operators, sample_schema().names) for label in planned.labels}


def test_each_text_has_its_embedding_and_pictures_are_embedded_once(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "model"))
    # Any text column stands in for a caption here.
    found = plan(
        Pool(tmp_path),
        ClipScore(model=model),
        CaptionScore(model=model, bind={"recaption": "url"}),
        CaptionScore(model=model, label="other", bind={"recaption": "error_message"}),
    )
    score, other = found["caption_score"], found["other"]
    assert score.origins["image_embedding"].fingerprint == found["clip_embedding"].fingerprint
    assert score.origins["text_embedding"].fingerprint == found["clip_text_embedding"].fingerprint
    own = score.origins["recaption_embedding"]
    assert (
        own.fingerprint == found["caption_score_text_embedding"].fingerprint != found["clip_text_embedding"].fingerprint
    )
    assert other.origins["recaption_embedding"].fingerprint == found["other_text_embedding"].fingerprint
    assert other.fingerprint != score.fingerprint
    assert len({planned.fingerprint for planned in found.values() if planned.operator.name == "clip_embedding"}) == 1


def test_the_caption_is_the_one_recaption_there_is(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "model"))
    with pytest.raises(MissingColumnsError, match="'recaption'"):
        plan(Pool(tmp_path), CaptionScore(model=model), SubCaptions())
