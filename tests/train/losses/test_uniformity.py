import math

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, make_outputs, pair_outputs
from train.evaluate.embedding import measure_uniformity
from train.loss import Objective
from train.losses.uniformity import Uniformity
from train.request import Text, View

SIDES = (View(), Text())


def spread(one: np.ndarray, other: np.ndarray, sharpness: float) -> float:
    values = [
        np.exp(-sharpness * ((one[i] - other[j]) ** 2).sum())
        for i in range(len(one))
        for j in range(len(other))
        if i != j
    ]
    return float(np.log(np.mean(values)))


def test_reference() -> None:
    outputs = make_outputs(SIDES, 6)
    images, texts = array(outputs, View()), array(outputs, Text())
    terms = Uniformity(alignment=0.5, uniformity=3.0, cross=2.0, power=1.0, sharpness=1.5)(outputs)
    distances = np.sqrt(((images - texts) ** 2).sum(1))
    assert terms["uniformity_alignment"].item() == pytest.approx(0.5 * distances.mean(), rel=1e-5)
    expected = 3 * (spread(images, images, 1.5) + spread(texts, texts, 1.5)) / 2
    assert terms["uniformity_spread"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["uniformity_cross"].item() == pytest.approx(2 * spread(images, texts, 1.5), rel=1e-5)


@pytest.mark.parametrize("part", ["alignment", "uniformity", "cross"])
def test_gradients(part: str) -> None:
    """The logarithm's derivative is written by hand; finite differences of the reference do not know it."""
    outputs = make_outputs(SIDES, 5)
    only = {name: float(name == part) for name in ("alignment", "uniformity", "cross")}
    sum(Uniformity(**only, power=3.0)(outputs).values()).backward()
    images, texts = array(outputs, View()), array(outputs, Text())
    steps = np.random.default_rng(0).normal(size=(2, *images.shape))

    def value(share: float) -> float:
        one, other = images + share * steps[0], texts + share * steps[1]
        if part == "alignment":
            return float((((one - other) ** 2).sum(1) ** 1.5).mean())
        # As on the sphere: products of unit vectors stand for squared distances.
        matrices = [one @ other.T] if part == "cross" else [one @ one.T, other @ other.T]
        away = ~np.eye(5, dtype=bool)
        return float(np.mean([np.log(np.exp(-2 * (2 - 2 * m))[away].mean()) for m in matrices]))

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    found = sum((outputs[side].grad.numpy() * step).sum() for side, step in zip(SIDES, steps, strict=True))
    assert found == pytest.approx(expected, rel=1e-3)


def test_values_by_hand() -> None:
    # Pictures are (1, 0) and (-1, 0), which are 2 apart, texts (1, 0) and (0, 1): square root of 2 apart.
    outputs = pair_outputs([[1.0, 0.0], [-1.0, 0.0]])
    terms = Uniformity(cross=1.0)(outputs)
    assert terms["uniformity_alignment"].item() == pytest.approx((0 + 2) / 2)
    assert terms["uniformity_spread"].item() == pytest.approx((-2 * 4 - 2 * 2) / 2)
    # The first picture is 2 (squared) from the second text, the second 4 from the first.
    assert terms["uniformity_cross"].item() == pytest.approx(math.log((math.exp(-4) + math.exp(-8)) / 2), rel=1e-5)


def test_one_point_is_zero_and_it_is_what_evaluation_measures() -> None:
    same = pair_outputs(np.tile([1.0, 0.0, 0.0], (3, 1)))
    assert Uniformity(alignment=0.0)._spread(same, View(), View()).item() == pytest.approx(0.0, abs=1e-6)
    outputs = make_outputs(SIDES, 9)
    terms = Uniformity(alignment=0.0)(outputs)
    measured = [measure_uniformity(outputs[side].detach()) for side in SIDES]
    assert terms["uniformity_spread"].item() == pytest.approx(np.mean(measured), rel=1e-4)


def test_parts_without_weight_are_left_out() -> None:
    outputs = make_outputs(SIDES, 4)
    assert list(Uniformity()(outputs)) == ["uniformity_alignment", "uniformity_spread"]
    assert list(Uniformity(alignment=0.0, uniformity=0.0, cross=1.0)(outputs)) == ["uniformity_cross"]
    with pytest.raises(InputError, match="are all 0; leave the loss out instead"):
        Uniformity(alignment=0.0, uniformity=0.0)
    with pytest.raises(InputError, match=r"power and sharpness must be above 0, got 2\.0 and 0\.0"):
        Uniformity(sharpness=0.0)


def test_a_batch_of_one_has_no_pairs() -> None:
    outputs = make_outputs(SIDES, 1)
    total, _ = Objective({"uniformity": {"alignment": 0.0, "cross": 1.0}})(outputs)
    total.backward()
    assert total.item() == 0
    assert not outputs[View()].grad.any()


def test_a_far_spread_is_a_number() -> None:
    outputs = pair_outputs([[1.0, 0.0], [-1.0, 0.0]])
    assert torch.isfinite(Uniformity(sharpness=200.0)(outputs)["uniformity_spread"])
