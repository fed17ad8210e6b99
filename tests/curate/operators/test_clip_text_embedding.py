"""Text embeddings of every kind of model against transformers itself, padded as it pads."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.clip_text_embedding import ClipTextEmbedding
from tests.contract import check_operator, column, run
from tests.model import CAPTIONS, make_checkpoint, make_siglip, make_siglip2
from tests.pool import NULL_CAPTION_ROW

REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
PINNED = ClipTextEmbedding(model="openai/clip-vit-base-patch32", revision=REVISION)
FINGERPRINT = "2b6f4dd6ffa5db4485f16deb384101f5aeb7858ac84e99ef2ef3273f98c0702a"
TEXTS = ["a red circle", "a blue square number 7 on grey ground", "", "word " * 200, CAPTIONS[0], "一只狗"]


@pytest.fixture(scope="module", params=["vit", "siglip", "siglip2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    maker = {"vit": make_checkpoint, "siglip": make_siglip, "siglip2": make_siglip2}[request.param]
    return maker(tmp_path_factory.mktemp("models") / request.param)


def embed(folder: Path, texts: list[str]) -> np.ndarray:
    output = run(ClipTextEmbedding(model=str(folder)), {"alt_text": Input.from_column(pa.array(texts))}, len(texts))
    return np.array(column(output, "text_embedding"), dtype=np.float32)


def test_contract(folder: Path) -> None:
    operator = ClipTextEmbedding(model=str(folder))
    output = check_operator(operator, pinned=PINNED, fingerprint=FINGERPRINT, tolerance=5e-4)
    assert output.errors[NULL_CAPTION_ROW] == "no alt_text"
    embeddings = [row for row in column(output, "text_embedding") if row is not None]
    assert np.linalg.norm(np.array(embeddings, dtype=np.float32), axis=1) == pytest.approx(1.0, abs=1e-3)


def test_trimming_and_batching_change_nothing(folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    length = model.config.text_config.max_position_embeddings
    with torch.inference_mode():
        ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        output = model.get_text_features(input_ids=ids["input_ids"])
    features = getattr(output, "pooler_output", output)
    expected = torch.nn.functional.normalize(features, dim=-1).numpy()
    assert np.abs(embed(folder, TEXTS) - expected).max() < 1e-3
    assert np.abs(embed(folder, TEXTS[:1]) - expected[:1]).max() < 1e-3
