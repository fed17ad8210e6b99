import json
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.train.dataset_builder import make_samples, write_dataset
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import COLOURS, flat, write_folder
from train.config import ModelConfig
from train.decoder import Decoder
from train.evaluate import evaluate, evaluate_model
from train.evaluation import EvaluationOptions
from train.model import build_model, load_model
from train.tokenizer import train_tokenizer

SHAPE = ModelConfig(
    image_size=32, patch_size=16, image_width=16, image_layers=1, image_heads=2,
    text_width=16, text_layers=1, text_heads=2, context_length=16, vocab_size=600, embed_dim=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(iter(["alt 1 recaption 2 rewrite 3.1 250 10"]), 600, 16)
    build_model(SHAPE, tokenizer, seed=0).save(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_checkpoint_scores_what_its_features_say(checkpoint: Path, tmp_path: Path) -> None:
    samples = make_samples(30)
    folder = write_dataset(tmp_path / "set", samples, captions={"alt_text": 1.0}, name="tiny")
    metrics = evaluate(str(checkpoint), [str(folder)], batch_size=8, num_workers=2, device="cpu")["tiny"]

    model = load_model(checkpoint)
    images = np.empty((30, 32, 32, 3), dtype=np.uint8)
    for row, sample in enumerate(samples):
        Decoder().square(sample.image, images[row])
    with torch.inference_mode():
        pictures = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2))
        texts = model.encode_text([str(sample.captions["alt_text"]) for sample in samples])
    order = (pictures @ texts.T).argsort(dim=1, descending=True)
    for limit in (1, 5, 10):
        expected = (order[:, :limit] == torch.arange(30)[:, None]).any(dim=1).float().mean().item()
        assert metrics[f"image_to_text_recall@{limit}"] == pytest.approx(expected, abs=0.034)  # one near-tie apart
        assert metrics[f"chance_image_to_text_recall@{limit}"] == pytest.approx(limit / 30)
    assert json.loads(json.dumps(metrics)) == metrics


def test_wrong_captions_of_two_origins_share_a_mean(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", make_samples(12), captions={"alt_text": 1.0, "rewrite[*]": 0.0})

    def measure(column: str) -> dict[str, float]:
        options = EvaluationOptions(compositional=True, negatives=(column,))
        found = evaluate(
            str(checkpoint),
            [str(folder)],
            options,
            device="cpu",
            num_workers=0,
            perturb=lambda text: (
                {"order": [text[::-1]], "rewrite": [text[1:]]} if column == "rewrite" else {"order": [text[::-1]]}
            ),
        )
        return found["tiny"]

    metrics = measure("recaption")
    kinds = [metrics[f"composition_{kind}"] for kind in ("order", "recaption")]
    assert metrics["composition_mean"] == pytest.approx(sum(kinds) / 2)
    with pytest.raises(
        InputError, match="composition_rewrite would be of two tasks; give the column of negatives another name"
    ):
        measure("rewrite")


def test_results_do_not_depend_on_workers(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", make_samples(30), captions={"rewrite[*]": 1.0})
    alone = evaluate(str(checkpoint), [str(folder)], batch_size=8, num_workers=0, device="cpu")
    assert evaluate(str(checkpoint), [str(folder)], batch_size=8, num_workers=3, device="cpu") == alone


class _CountingProgress(SilentProgress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.amount = 0
        self.closed = 0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stages.append((stage, total))

    def advance(self, amount: int, **fields: str) -> None:
        self.amount += amount

    def close(self) -> None:
        self.closed += 1


def test_every_entry_is_reported_under_its_name(tmp_path: Path) -> None:
    members = [("0.png", flat(COLOURS["red"])), ("0.txt", b"250 10 10")]
    first = write_folder(tmp_path / "a" / "set", [members], dataset_type="retrieval")
    second = write_folder(tmp_path / "b" / "set", [members], dataset_type="retrieval")
    progress = _CountingProgress()
    results = evaluate_model(ColourEncoder(), [str(first), str(second)], num_workers=0, progress=progress)
    assert list(results) == ["set", str(second)]
    assert progress.stages == [("evaluate set", 1)] * 2
    assert progress.amount == progress.closed == 2


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to evaluate on"):
        evaluate_model(ColourEncoder(), [])
    with pytest.raises(InputError, match="nowhere does not exist; give a dataset or a folder"):
        evaluate_model(ColourEncoder(), [str(tmp_path / "nowhere")])
