from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from schemas.errors import InputError
from tests.train.losses.outputs import (
    SCALE,
    WIDTH,
    array,
    assert_gradient,
    clip_reference,
    make_objective,
    make_outputs,
    slopes,
)
from tests.train.losses.scenes import COLUMNS_FILE, write_rich_scenes
from tests.train.training import TINY
from train.config import TrainConfig
from train.loss import Shape
from train.losses.info_nce import InfoNCE
from train.losses.three_towers import ThreeTowers
from train.request import Column, Text, View
from train.trainer import train

THIRD = Column(name="teacher_image_embedding", kind="vector")
SIDES = {"image": View(), "text": Text()}
WIDE = 11  # of the third tower's embeddings, unlike the model's


def build(**options: object) -> ThreeTowers:
    torch.manual_seed(0)
    loss = ThreeTowers(**options)
    sizes = {"image_width": 1, "text_width": 1, "vocab_size": 1, "context_length": 1, "is_text_causal": True}
    loss.build(Shape(embed_dim=WIDTH, widths={THIRD.key: WIDE}, **sizes))
    return loss


def make(count: int = 6):
    third = torch.randn(count, WIDE, generator=torch.Generator().manual_seed(3))
    return make_outputs((View(), Text(), THIRD), count, changed={THIRD: third})


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def weight(head: torch.nn.Module) -> np.ndarray:
    return head.weight.detach().numpy().astype(np.float64)


def contrast(loss: ThreeTowers, name: str, rows: np.ndarray, third: np.ndarray) -> float:
    own, others = unit(rows @ weight(loss.heads[name]).T), unit(third @ weight(loss.third_heads[name]).T)
    return clip_reference(SCALE * own @ others.T)


@pytest.mark.parametrize(("image", "text"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (3.0, 0.0)])
def test_reference(image: float, text: float) -> None:
    loss, outputs = build(image=image, text=text), make()
    terms = loss(outputs)
    third = array(outputs, THIRD)
    whole = 1 + image + text
    expected = clip_reference(SCALE * array(outputs, View()) @ array(outputs, Text()).T) / whole
    assert terms.pop("three_towers").item() == pytest.approx(expected, rel=1e-5)
    for name, share in (("image", image), ("text", text)):
        if share:
            expected = share / whole * contrast(loss, name, array(outputs, SIDES[name]), third)
            assert terms.pop(f"three_towers_{name}").item() == pytest.approx(expected, rel=1e-5)
    assert not terms


def test_the_mean_of_three_alike_is_each_of_them() -> None:
    """Maps that change nothing, and a third tower that is the image tower: three times the contrast of pictures, but for texts with texts."""
    loss = make_objective({"three_towers": 1.0}).losses["three_towers"]
    pictures = make_outputs(loss.needs, 6)[View()].detach()
    outputs = make_outputs(loss.needs, 6, changed={View(): pictures, THIRD: 5 * pictures})
    for head in (*loss.heads.values(), *loss.third_heads.values()):
        head.weight.data.copy_(torch.eye(WIDTH))
    terms = loss(outputs)
    torch.testing.assert_close(terms["three_towers_text"], terms["three_towers"])
    expected = clip_reference(SCALE * array(outputs, View()) @ array(outputs, View()).T) / 3
    assert terms["three_towers_image"].item() == pytest.approx(expected, rel=1e-5)


def test_gradients() -> None:
    loss, outputs = build(), make(5)
    images, texts, third = (array(outputs, request) for request in (View(), Text(), THIRD))
    sum(loss(outputs).values()).backward()

    def value(one: np.ndarray, other: np.ndarray) -> float:
        parts = (
            clip_reference(SCALE * one @ other.T),
            contrast(loss, "image", one, third),
            contrast(loss, "text", other, third),
        )
        return sum(parts) / 3

    assert_gradient(outputs[View()].grad, slopes(lambda rows: value(rows, texts), images))
    assert_gradient(outputs[Text()].grad, slopes(lambda rows: value(images, rows), texts))
    for head in (*loss.heads.values(), *loss.third_heads.values()):
        assert head.weight.grad.abs().max() > 1e-3


def test_the_third_tower_has_no_gradient() -> None:
    loss, outputs = build(), make()
    stored = outputs[THIRD].requires_grad_()
    sum(loss(outputs).values()).backward()
    assert stored.grad is None
    # Its maps do learn, and its length does not count.
    longer = make()
    longer.tensors[THIRD.key] = 7.0 * longer[THIRD]
    torch.testing.assert_close(sum(loss(longer).values()), sum(loss(make()).values()))


def test_without_a_third_tower_it_is_info_nce() -> None:
    loss = build(image=0.0, text=0.0)
    assert loss.needs == (View(), Text())
    assert list(loss.parameters()) == []
    found, expected = make(), make()
    mine, theirs = loss(found)["three_towers"], InfoNCE()(expected)["info_nce"]
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    mine.backward()
    theirs.backward()
    for side in SIDES.values():
        torch.testing.assert_close(found[side].grad, expected[side].grad)


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"image and text are 0 or more, got -1\.0 and 1\.0"):
        ThreeTowers(image=-1.0)


@pytest.mark.usefixtures("keep_threads")
def test_the_saved_model_is_two_towers(tmp_path: Path) -> None:
    dataset = write_rich_scenes(tmp_path)
    models = {}
    for name in ("info_nce", "three_towers"):
        columns = (str(tmp_path / COLUMNS_FILE),)
        config = TrainConfig(**{**TINY, "samples_seen": 16 * 3, "columns": columns, "losses": {name: 1.0}})
        report = train(str(dataset), str(tmp_path / name), config)
        models[name] = load_file(report.checkpoint / "model.safetensors")
    assert {key: value.shape for key, value in models["three_towers"].items()} == {
        key: value.shape for key, value in models["info_nce"].items()
    }
    state = load_file(report.checkpoint / "optimizer.safetensors")
    assert sum("third_heads" in key for key in state) >= 2
