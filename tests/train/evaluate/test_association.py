import json

import pytest
import torch

from schemas.errors import InputError
from train.evaluate.association import make_prompt, measure_associations, read_associations
from train.evaluate.task import Association


def test_prompts() -> None:
    assert make_prompt("Apple") == "An apple"
    assert make_prompt("Wolf") == "A wolf"


def test_jaccard_by_hand() -> None:
    images = torch.tensor([[1.0 - number / 20, 0.0] for number in range(12)])
    cue = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    games = [
        Association("a", list(range(5)), frozenset([0, 1])),  # both found
        Association("b", list(range(12)), frozenset([0, 11])),  # one of two: 1 / 3
        Association("c", list(range(12)), frozenset([0, 1, 2])),  # none
    ]
    metrics = measure_associations(images, cue, games)
    assert metrics["jaccard_5_6"] == 1.0
    assert metrics["jaccard_10_12"] == pytest.approx((1 / 3 + 0) / 2)
    assert metrics["jaccard"] == pytest.approx((1 + 1 / 3) / 3)
    # Two of five at random: one right in 6 of 10 draws, both in 1.
    assert metrics["chance_jaccard_5_6"] == pytest.approx(0.6 / 3 + 0.1)
    assert metrics["num_games"] == 3


def test_a_model_that_says_one_thing_finds_nothing() -> None:
    game = [Association("a", list(range(5)), frozenset([0, 1]))]
    for value in (1.0, float("nan")):
        metrics = measure_associations(torch.full((5, 2), value), torch.ones(1, 2), game)
        assert metrics["jaccard"] == 0.0
        assert "jaccard_10_12" not in metrics


def test_games_are_read_and_mistakes_named() -> None:
    keys = {"cat": 0, "dog": 1, "tree": 2}
    game = {"cue": "pet", "candidates": ["cat", "dog", "tree"], "associations": ["cat", "dog"]}
    (read,) = read_associations(json.dumps(game) + "\n\n", keys, "f")
    assert read == Association("pet", [0, 1, 2], frozenset([0, 1]))
    for change, message in [
        ({"candidates": ["cow"]}, r"f line 1 is no game .* among the images \(KeyError\('cow'\)\)"),
        ({"candidates": "cat"}, "f line 1 is no game"),
        ({"candidates": ["cat"]}, "f line 1: the associations must be some of the candidates"),
        ({"associations": []}, "f line 1: the associations must be some of the candidates"),
    ]:
        with pytest.raises(InputError, match=message):
            read_associations(json.dumps(game | change), keys, "f")
    with pytest.raises(InputError, match="f holds no games"):
        read_associations("\n", keys, "f")
