"""Likelihoods against the models themselves, one token at a time; what padding, cutting and wrong folders do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.images import to_column
from curate.models.captioner import ChatCaptioner, TokenizedCaption, is_chat_model, load_captioner
from curate.models.preprocess import load_settings, prepare_images, stack_images
from schemas.errors import InputError
from tests.captioner import KINDS, make_captioner
from tests.model import make_siglip

CAPTIONS = ["a red circle number 3 on grey ground", "square", "a blue square number 11", "grey grey grey"]
PROMPT = "a yellow square"


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_captioner(tmp_path_factory.mktemp("models") / request.param, request.param))


def make_pictures(num: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 3 * n, 50, 3)).astype(np.uint8) for n in range(num)]


def encode(folder: str, captioner: Any, pictures: list[np.ndarray]) -> Any:
    if isinstance(captioner, ChatCaptioner):
        return captioner.encode(pictures)
    settings = load_settings(folder)
    import pyarrow as pa

    prepared = pa.chunked_array([prepare_images(settings, pa.chunked_array([to_column(pictures)]))])
    return captioner.encode(stack_images(settings, prepared))


def plain_score(folder: str, picture: np.ndarray, ids: tuple[int, ...]) -> float:
    """Return the caption's likelihood by asking the whole model for every next token."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    network = AutoModelForImageTextToText.from_pretrained(folder).eval()
    total, kind = 0.0, network.config.model_type
    for place in range(len(ids)):
        before = torch.tensor([[2, *ids[:place]]])
        with torch.inference_mode():
            if kind == "llava":
                processor = AutoProcessor.from_pretrained(folder)
                inputs = processor(text=["<image> a yellow square "], images=[picture], return_tensors="pt")
                inputs["input_ids"] = torch.cat([inputs["input_ids"], before[:, 1:]], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                logits = network(**inputs).logits
            else:
                pixels = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
                name = "decoder_input_ids" if kind == "vision-encoder-decoder" else "input_ids"
                logits = network(pixel_values=pixels, **{name: before}).logits
        total += float(torch.log_softmax(logits[0, -1].double(), dim=-1)[ids[place]])
    return total


def test_scores_are_those_of_the_model(folder: str) -> None:
    captioner, pictures = load_captioner(folder, prompt=PROMPT), make_pictures()
    captions = captioner.tokenize(CAPTIONS, 20)
    assert [len(caption.ids) for caption in captions] == [9, 2, 6, 4]
    assert all(caption.ids[-1] == 3 for caption in captions)
    found = captioner.score(encode(folder, captioner, pictures), captions)
    for picture, caption, score in zip(pictures, captions, found, strict=True):
        assert score == pytest.approx(plain_score(folder, picture, caption.ids), abs=2e-3)


def test_a_score_does_not_depend_on_its_neighbours(folder: str) -> None:
    captioner, pictures = load_captioner(folder, prompt=PROMPT), make_pictures()
    captions = captioner.tokenize(CAPTIONS, 20)
    together = captioner.score(encode(folder, captioner, pictures), captions)
    alone = [
        captioner.score(encode(folder, captioner, [picture]), [caption])[0]
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-4)


def test_one_picture_may_stand_for_all_captions(folder: str) -> None:
    captioner, pictures = load_captioner(folder, prompt=PROMPT), make_pictures()
    captions = captioner.tokenize(CAPTIONS, 20)
    shared = captioner.score(encode(folder, captioner, pictures[:1]), captions)
    assert shared == pytest.approx(
        captioner.score(encode(folder, captioner, pictures[:1] * 4), captions).tolist(), abs=1e-4
    )
    others = captioner.score(encode(folder, captioner, pictures), captions)
    assert (np.abs(shared - others)[1:] > 1e-6).all()  # the picture matters


def test_long_captions_are_cut_and_lose_their_end_mark(folder: str) -> None:
    captioner = load_captioner(folder, prompt=PROMPT)
    (whole,), (cut,) = (captioner.tokenize(CAPTIONS[:1], most) for most in (8, 7))
    assert (whole.is_truncated, cut) == (False, TokenizedCaption(whole.ids[:7], True))
    assert captioner.tokenize([], 5) == []
    longest = captioner.tokenize(["red " * 1_000], 10_000)
    limit = 255 if isinstance(captioner, ChatCaptioner) else 23
    assert longest == [TokenizedCaption((longest[0].ids[0],) * limit, True)]
    if not isinstance(captioner, ChatCaptioner):
        assert np.isfinite(captioner.score(encode(folder, captioner, make_pictures(1)), longest)).all()


def test_models_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"empty has no config\.json that names its model_type"):
        (tmp_path / "empty").mkdir()
        is_chat_model(str(tmp_path / "empty"))
    siglip = make_siglip(tmp_path / "siglip")
    with pytest.raises(InputError, match="siglip holds no image-to-text model that transformers can load"):
        load_captioner(str(siglip))
    chat = make_captioner(tmp_path / "chat", "llava")
    (chat / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="llava model without a chat template; captioners are supported"):
        load_captioner(str(chat), prompt=PROMPT)
    blip = make_captioner(tmp_path / "git", "git")
    config = json.loads((blip / "config.json").read_text())
    (blip / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    (blip / "generation_config.json").unlink()
    tokenizer = json.loads((blip / "tokenizer_config.json").read_text())
    (blip / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": None}))
    with pytest.raises(InputError, match="does not say which tokens its captions start and end with"):
        load_captioner(str(blip))
