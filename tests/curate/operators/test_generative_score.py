"""Scores of captions by a tiny captioner that was taught colours, and one caption that fits everything."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from curate.columns import Input
from curate.models.captioner import load_captioner
from curate.operators.generative_score import GenerativeScore
from schemas.errors import InputError
from tests.captioner import KINDS, make_captioner
from tests.contract import check_operator, column, picture_input, run

FINGERPRINT = "ab44d9a417d8d3630afe1d5e3094b28cf374601481ec40654acb4829c1b36f72"
PINNED = GenerativeScore(model="hub/model", revision="0" * 40)
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200)}
FITS_ALL = "a stock photo"


@pytest.mark.parametrize("kind", KINDS)
def test_contract(tmp_path: Path, kind: str) -> None:
    model = str(make_captioner(tmp_path / "model", kind))
    operator = GenerativeScore(model=model, max_tokens=12, num_null_images=2)
    output = check_operator(operator, fingerprint=FINGERPRINT, pinned=PINNED, tolerance=1e-4)
    scores, tokens = column(output, "generative_score"), column(output, "generative_num_tokens")
    assert any(score is not None for score in scores)
    assert all(score < 0 for score in scores if score is not None)
    assert max(count for count in tokens if count is not None) <= 13


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GIT that has seen colours with their names, and more often with a caption that says nothing."""
    captions = [f"a picture of something {colour}" for colour in COLOURS]
    folder = make_captioner(tmp_path_factory.mktemp("models") / "git", "git", captions=[*captions, FITS_ALL])
    captioner: Any = load_captioner(str(folder))
    network = captioner.network.train()
    pictures = captioner.encode(np.stack([paint(colour) for colour in COLOURS])).clone()
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(100):
        which = random.integers(3, size=16)
        texts = [FITS_ALL if random.random() < 0.6 else captions[number] for number in which]
        ids = [[2, *caption.ids] for caption in captioner.tokenize(texts, 20)]
        labels = torch.full((16, max(map(len, ids))), 0)
        for row, tokens in enumerate(ids):
            labels[row, : len(tokens)] = torch.tensor(tokens)
        mask = (torch.arange(labels.shape[1]) < torch.tensor([[len(tokens)] for tokens in ids])).long()
        pixels = pictures[which] + 0.1 * torch.randn(16, *pictures.shape[1:])
        network(
            pixel_values=pixels, input_ids=labels, attention_mask=mask, labels=labels.masked_fill(mask == 0, -100)
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval().save_pretrained(folder / "taught")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "taught" / name).write_bytes((folder / name).read_bytes())
    return str(folder / "taught")


def paint(colour: str) -> np.ndarray:
    return np.broadcast_to(np.array(COLOURS[colour], np.uint8), (32, 32, 3)).copy()


def score(operator: GenerativeScore, pairs: list[tuple[str, str]]) -> dict[str, list[Any]]:
    inputs = {
        "image": picture_input([paint(colour) for colour, _ in pairs]),
        "alt_text": Input.from_column(pa.array([caption for _, caption in pairs])),
    }
    output = run(operator, inputs, len(pairs))
    return {"error": output.errors, **{name: column(output, name) for name in operator.writes.names}}


def test_true_captions_are_likelier_than_wrong_and_shuffled_ones(taught: str) -> None:
    for colour in COLOURS:
        others = [other for other in COLOURS if other != colour]
        captions = [f"a picture of something {name}" for name in (colour, *others)]
        captions += [f"something {colour} a of picture", FITS_ALL]
        found = score(GenerativeScore(model=taught), [(colour, caption) for caption in captions])
        likely, marginal, pmi = (np.array(found[f"generative_{name}score"]) for name in ("", "null_", "pmi_"))
        assert likely[:4].argmax() == 0
        # The caption that fits everything is the likeliest of all, and tells the least.
        assert likely.argmax() == 4
        assert pmi[0] > pmi[4]
        assert pmi == pytest.approx((likely - marginal).tolist(), abs=1e-5)


def test_alpha_weighs_the_marginal(taught: str) -> None:
    pairs = [(colour, f"a picture of something {colour}") for colour in COLOURS]
    plain, half = (score(GenerativeScore(model=taught, alpha=alpha), pairs) for alpha in (0.0, 0.5))
    assert plain["generative_pmi_score"] == plain["generative_score"]
    expected = np.array(half["generative_score"]) - 0.5 * np.array(half["generative_null_score"])
    assert half["generative_pmi_score"] == pytest.approx(expected.tolist(), abs=1e-5)
    without = score(GenerativeScore(model=taught, num_null_images=0), pairs)
    assert without["generative_score"] == plain["generative_score"]
    assert without["generative_null_score"] == without["generative_pmi_score"] == [None] * 3


def test_the_marginal_is_the_mean_of_probabilities_and_does_not_see_the_picture(taught: str) -> None:
    pairs = [(colour, FITS_ALL) for colour in COLOURS]
    three = score(GenerativeScore(model=taught, seed=5), pairs)["generative_null_score"]
    assert three[0] == pytest.approx(three[1]) == pytest.approx(three[2])
    captioner = load_captioner(taught)
    operator = GenerativeScore(model=taught, seed=5)
    (caption,) = captioner.tokenize([FITS_ALL], 64)
    pictures = operator._null_pictures(captioner.settings)  # type: ignore[attr-defined]
    chances = [np.exp(captioner.score(captioner.encode(picture), [caption])[0]) for picture in pictures]
    assert three[0] == pytest.approx(np.log(np.mean(chances)) / len(caption.ids), abs=1e-5)


def test_cut_captions_say_so_and_empty_ones_are_errors(taught: str) -> None:
    captions = ["a picture of something red", "a stock photo", " "]
    found = score(GenerativeScore(model=taught, max_tokens=3), [("red", caption) for caption in captions])
    assert found["is_generative_truncated"] == [True, False, None]
    assert found["generative_num_tokens"] == [3, 4, None]
    assert found["error"] == [None, None, "the caption has no words"]
    assert found["generative_pmi_score"][2] is None


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="max_tokens must be at least 1"):
        GenerativeScore(model="m", max_tokens=0)
    with pytest.raises(InputError, match="alpha 0 or more"):
        GenerativeScore(model="m", alpha=-1.0)
