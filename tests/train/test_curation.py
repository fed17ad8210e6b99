from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from schemas.errors import InputError
from tests.train.processes import run_processes
from train.config import ModelConfig
from train.curation import Nearness, collect, encode_unprojected, keep_close, read_names
from train.distributed import World
from train.model import ImageTextModel, build_model
from train.sampling import Curation
from train.tokenizer import train_tokenizer

SHAPE = ModelConfig(
    image_size=16,
    patch_size=8,
    image_width=32,
    image_layers=1,
    image_heads=2,
    text_width=32,
    text_layers=1,
    text_heads=2,
    context_length=12,
    vocab_size=600,
    embed_dim=16,
)
TEXTS = [f"a {word} number {number}" for number in range(300) for word in ("cat", "dog")]


def tiny_model() -> ImageTextModel:
    return build_model(SHAPE, train_tokenizer(TEXTS, 600, 12), seed=0).eval()


def test_kept_are_those_above_the_threshold() -> None:
    cosines = np.array([0.1, 0.9, 0.5, 0.7, 0.55], dtype=np.float32)
    assert keep_close(cosines, 0.55, 0.1).tolist() == [1, 3]  # 0.55 in single precision is not above 0.55
    assert keep_close(cosines, 0.0, 0.1).tolist() == [0, 1, 2, 3, 4]


def test_the_best_share_stays_where_too_few_are_above() -> None:
    cosines = np.array([0.1, 0.9, 0.5, 0.7, 0.3], dtype=np.float32)
    assert keep_close(cosines, 0.8, 0.4).tolist() == [1, 3]
    assert keep_close(cosines, 2.0, 0.003).tolist() == [1]


def test_the_raw_stream_is_read_until_enough_are_kept() -> None:
    asked = []

    def raw(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.arange(start, stop) % 50

    found = collect(
        Curation(names="", threshold=0.5, min_ratio=0.05),
        num_samples=7,
        raw=raw,
        raw_size=20,
        position=40,
        cosines=lambda rows: (rows % 5 == 0).astype(np.float32),
    )
    assert asked == [(40, 60), (60, 80)]
    assert found.position == 80
    assert found.rows.tolist() == [40, 45, 0, 5, 10, 15, 20]


def test_names_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("tench\n\n  great white shark \ntench\n")
    assert read_names(str(path)) == ["tench", "great white shark"]
    path.write_text(" \n")
    with pytest.raises(InputError, match="holds no names; write one per line"):
        read_names(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        read_names(str(tmp_path / "nowhere"))


def test_features_are_those_before_the_projection() -> None:
    model = tiny_model()
    features = encode_unprojected(model, TEXTS[:3])
    assert features.shape == (3, 32)
    projected = functional.normalize(model.network.text_projection(_pooled(model, TEXTS[:3])), dim=-1)
    torch.testing.assert_close(projected, model.encode_text(TEXTS[:3]))
    torch.testing.assert_close(functional.normalize(_pooled(model, TEXTS[:3]), dim=-1), features)


def _pooled(model: ImageTextModel, texts: list[str]) -> torch.Tensor:
    ids, mask = model.tokenize(texts)
    pooled: torch.Tensor = model.network.text_model(input_ids=ids, attention_mask=mask).pooler_output
    return pooled


def cosines_of(world: World) -> dict[str, torch.Tensor]:
    return {"cosines": torch.from_numpy(Nearness(tiny_model(), ["a cat", "a dog"], world).cosines(TEXTS))}


def test_processes_share_the_work_and_agree(tmp_path: Path) -> None:
    alone = cosines_of(World())["cosines"]
    model = tiny_model()
    names = encode_unprojected(model, ["a cat", "a dog"])
    expected = torch.stack([(encode_unprojected(model, [text]) @ names.T).max() for text in TEXTS[:4]])
    torch.testing.assert_close(alone[:4], expected, atol=1e-5, rtol=0)
    for found in run_processes(2, tmp_path, cosines_of):
        assert torch.equal(found["cosines"], alone)
