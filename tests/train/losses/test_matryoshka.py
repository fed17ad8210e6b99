from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.recipe import load_recipe
from schemas.errors import InputError
from tests.train.losses.outputs import array, clip_reference, make_objective, make_outputs
from train.loss import Shape
from train.losses.info_nce import InfoNCE
from train.losses.matryoshka import Matryoshka
from train.request import Text, View

SIDES = (View(), Text())


def build(embed_dim: int, **options: object) -> Matryoshka:
    loss = Matryoshka(**options)
    loss.build(
        Shape(embed_dim=embed_dim, image_width=1, text_width=1, vocab_size=1, context_length=1, is_text_causal=True)
    )
    return loss


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_reference() -> None:
    loss = make_objective({"matryoshka": {"widths": (8, 2, 5), "weights": (1.0, 0.25, 3.0)}}).losses["matryoshka"]
    outputs = make_outputs(SIDES, 7)
    terms = loss(outputs)
    for width, weight in ((8, 1.0), (2, 0.25), (5, 3.0)):
        images, texts = (unit(array(outputs, side)[:, :width]) for side in SIDES)
        expected = weight * clip_reference(7.0 * images @ texts.T)
        assert terms.pop(f"matryoshka_{width}").item() == pytest.approx(expected, rel=1e-5)
    assert not terms


def test_gradients_are_those_of_the_sum_of_the_cut_losses() -> None:
    """A prefix's loss moves its own numbers only, and what scales it to length 1 is derived too."""
    outputs = make_outputs(SIDES, 5)
    build(8, widths=(3,))(outputs)["matryoshka_3"].backward()
    gradient = outputs[View()].grad
    assert not gradient[:, 3:].any()
    step, rng = 1e-4, np.random.default_rng(0)
    direction = rng.normal(size=(5, 8))
    images, texts = (array(outputs, side) for side in SIDES)

    def value(share: float) -> float:
        moved = unit((images + share * direction)[:, :3])
        return clip_reference(7.0 * moved @ unit(texts[:, :3]).T)

    expected = (value(step) - value(-step)) / (2 * step)
    assert (gradient.numpy() * direction).sum() == pytest.approx(expected, rel=1e-3)


def test_the_whole_width_alone_is_info_nce() -> None:
    found, expected = make_outputs(SIDES, 6), make_outputs(SIDES, 6)
    mine = build(8, widths=(8,))(found)["matryoshka_8"]
    theirs = InfoNCE()(expected)["info_nce"]
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    mine.backward()
    theirs.backward()
    torch.testing.assert_close(found[View()].grad, expected[View()].grad)


# The widths of the paper's ResNet and ViT, and of a model that is too narrow to be halved.
@pytest.mark.parametrize(
    ("embed_dim", "widths"),
    [
        (2048, (2048, 1024, 512, 256, 128, 64, 32, 16, 8)),
        (768, (768, 384, 192, 96, 48, 24, 12)),
        (6, (6,)),
    ],
)
def test_widths_of_a_model(embed_dim: int, widths: tuple[int, ...]) -> None:
    loss = build(embed_dim)
    assert loss.widths == widths
    assert loss.width_weights == (1.0,) * len(widths)


def test_a_width_of_weight_zero_is_left_out() -> None:
    assert list(build(8, widths=(8, 4), weights=(0.0, 1.0))(make_outputs(SIDES, 4))) == ["matryoshka_4"]


def test_wrong_options() -> None:
    for widths in ((4, 4), (0,), (2.5,), ("8",), (True,)):
        with pytest.raises(InputError, match="widths are different whole numbers of 1 or more, got"):
            Matryoshka(widths=widths)
    for weights in ((-1.0, 2.0), (0.0, 0.0), ("1",)):
        with pytest.raises(InputError, match="weights are numbers of 0 or more, one of them above, got"):
            Matryoshka(widths=(4, 8)[: len(weights)], weights=weights)
    with pytest.raises(InputError, match="width 16 is more than the 8 of the model's embedding"):
        build(8, widths=(8, 16))
    with pytest.raises(InputError, match=r"there are 2 widths \[4, 8\] and 1 weights; give each one"):
        build(8, widths=(4, 8), weights=(1.0,))


def test_lists_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: debug\ntrain: {losses: {matryoshka: {weight: 2.0, widths: [8, 4], weights: [1, 0.5]}}}\n"
    )
    objective = make_objective(load_recipe(tmp_path / "mine.yaml").train.losses)
    assert objective.losses["matryoshka"].widths == (8, 4)
    assert objective.losses["matryoshka"].width_weights == (1.0, 0.5)
