import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.evaluate import relevance
from train.evaluate.relevance import measure_relevance

NAME = "text_to_image_ndcg@10"


def _gain(grades: Sequence[float]) -> float:
    return sum(grade / math.log2(place + 1) for place, grade in enumerate(grades[:10], start=1))


def _by_loops(scores: np.ndarray, texts: Sequence[str], grades: Sequence[Mapping[str, float]]) -> list[float]:
    """NDCG of each text with something relevant, by sorting all pictures; of ties the least relevant first."""
    values = []
    for number, text in enumerate(texts):
        own = [graded.get(text, 0.0) for graded in grades]
        if not any(own):
            continue
        order = sorted(range(len(own)), key=lambda image: (-scores[number, image], own[image]))
        values.append(_gain([own[image] for image in order]) / _gain(sorted(own, reverse=True)))
    return values


@settings(max_examples=80, deadline=None)
@given(
    num_images=st.integers(1, 25),
    num_texts=st.integers(1, 6),
    seed=st.integers(0, 1000),
    chunk=st.sampled_from([1, 7, 1 << 23]),
)
def test_ndcg_is_that_of_sorting(num_images: int, num_texts: int, seed: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    # Few different small whole numbers: exact products and many ties.
    images = rng.integers(-1, 2, (num_images, 3)).astype(np.float32)
    features = rng.integers(-1, 2, (num_texts, 3)).astype(np.float32)
    texts = [f"text {number}" for number in range(num_texts)]
    grades = [{text: float(rng.integers(0, 4)) for text in texts if rng.random() < 0.4} for _ in range(num_images)]
    expected = _by_loops(features @ images.T, texts, grades)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevance, "_CHUNK_SCORES", chunk)
        metrics = measure_relevance(torch.from_numpy(images), torch.from_numpy(features), texts, grades)
    assert metrics["num_graded_texts"] == len(expected)
    if expected:
        assert metrics[NAME] == pytest.approx(np.mean(expected))
    else:
        assert NAME not in metrics


def _line(scores: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with these scores for the one text there is."""
    return torch.tensor([[score] for score in scores]), torch.tensor([[1.0]])


def test_a_case_by_hand() -> None:
    # Places: 2, none, 3, 1. 2 + 0 + 3 / 2 + 1 / log2(5), of 3 + 2 / log2(3) + 1 / 2.
    grades = [{"q": 1.0}, {}, {"q": 2.0}, {"q": 3.0}]
    metrics = measure_relevance(*_line([0.1, 0.8, 0.9, 0.5]), ["q"], grades)
    assert metrics[NAME] == pytest.approx((2 + 1.5 + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 0.5))
    assert metrics["num_graded_texts"] == 1


@pytest.mark.parametrize(("place", "expected"), [(1, 1.0), (2, 1 / math.log2(3)), (10, 1 / math.log2(11)), (11, 0.0)])
def test_one_relevant_picture_scores_by_its_place_whatever_its_grade(place: int, expected: float) -> None:
    for grade in (0.25, 40.0):
        grades = [{"q": grade} if image == place - 1 else {} for image in range(12)]
        metrics = measure_relevance(*_line([1 - image / 12 for image in range(12)]), ["q"], grades)
        assert metrics[NAME] == pytest.approx(expected)


def test_texts_without_a_relevant_picture_are_left_out() -> None:
    images, features = torch.eye(2), torch.eye(2)
    metrics = measure_relevance(images, features, ["a", "b"], [{"a": 1.0}, {"b": 0.0}])
    assert (metrics[NAME], metrics["num_graded_texts"]) == (1.0, 1.0)
    assert measure_relevance(images, features, ["a", "b"], [{}, {"b": 0.0}]) == {"num_graded_texts": 0.0}


@pytest.mark.parametrize("score", [0.5, math.nan])
def test_a_model_that_says_one_thing_of_everything_finds_nothing(score: float) -> None:
    metrics = measure_relevance(*_line([score] * 20), ["q"], [{"q": 2.0}] + [{}] * 19)
    assert metrics[NAME] == 0.0


def test_guessing_is_the_mean_of_all_orders() -> None:
    grades = [{"q": 2.0}, {"q": 1.0}, {}, {}]
    found = [
        measure_relevance(*_line(order), ["q"], grades)[NAME] for order in itertools.permutations([0.1, 0.2, 0.3, 0.4])
    ]
    chance = measure_relevance(*_line([0.1, 0.2, 0.3, 0.4]), ["q"], grades)[f"chance_{NAME}"]
    assert chance == pytest.approx(np.mean(found))
