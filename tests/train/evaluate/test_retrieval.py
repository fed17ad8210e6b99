import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.evaluate import retrieval
from train.evaluate.retrieval import Matches, UniqueTexts, measure_retrieval, rank_matches


def _unit(rows: list[list[float]]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def _brute_force(images: np.ndarray, texts: UniqueTexts, features: np.ndarray, limit: int) -> tuple[float, float]:
    """Karpathy's rule by sorting every list of candidates; ties put the match last."""
    caption_of = [text for text, count in enumerate(texts.counts) for _ in range(count)]
    to_text = []
    for image, own in enumerate(texts.of_image):
        scores = images[image] @ features.T
        order = sorted(caption_of, key=lambda text: (-scores[text], text in own))
        to_text.append(any(text in own for text in order[:limit]))
    to_image = []
    for text in caption_of:
        scores = features[text] @ images.T
        order = sorted(range(len(images)), key=lambda image: (-scores[image], image in texts.images[text]))
        to_image.append(any(image in texts.images[text] for image in order[:limit]))
    return float(np.mean(to_text)), float(np.mean(to_image))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_images=st.integers(1, 14), seed=st.integers(0, 1000), chunk=st.sampled_from([1, 7, 1 << 25]))
def test_recalls_are_those_of_sorting(data: st.DataObject, num_images: int, seed: int, chunk: int) -> None:
    captions = data.draw(
        st.lists(
            st.lists(st.integers(0, 25).map(str), min_size=1, max_size=4), min_size=num_images, max_size=num_images
        )
    )
    texts = UniqueTexts.of(captions)
    # Few different small whole numbers: exact products and many ties.
    rng = np.random.default_rng(seed)
    images = rng.integers(-1, 2, (num_images, 3)).astype(np.float32)
    features = rng.integers(-1, 2, (len(texts.texts), 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_CHUNK_SCORES", chunk)
        metrics = measure_retrieval(torch.from_numpy(images), torch.from_numpy(features), texts)
    for limit in (1, 5, 10):
        expected = _brute_force(images, texts, features, limit)
        found = (metrics[f"image_to_text_recall@{limit}"], metrics[f"text_to_image_recall@{limit}"])
        assert found == pytest.approx(expected)
    assert metrics["num_captions"] == sum(len(own) for own in captions)


def test_a_case_by_hand() -> None:
    # Two captions of image 0, one of image 1; caption "c" of image 1 lies nearest to image 0.
    texts = UniqueTexts.of([["a", "b"], ["c"]])
    images = _unit([[1.0, 0.0], [0.0, 1.0]])
    features = _unit([[0.5, 1.0], [0.6, 1.0], [1.0, 0.1]])
    metrics = measure_retrieval(images, features, texts)
    assert metrics["image_to_text_recall@1"] == 0.0  # c beats b at image 0; a and b beat c at image 1
    assert metrics["image_to_text_recall@5"] == 1.0
    assert metrics["text_to_image_recall@1"] == 0.0
    assert metrics["mean_recall@1"] == 0.0
    # Guessing: image 0 has two of three captions, image 1 one of three; an image is one of two.
    assert metrics["chance_image_to_text_recall@1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert metrics["chance_text_to_image_recall@1"] == pytest.approx(1 / 2)
    assert metrics["chance_image_to_text_recall@5"] == 1.0


def test_a_model_that_says_one_thing_of_everything_finds_nothing() -> None:
    texts = UniqueTexts.of([[f"{image}"] for image in range(20)])
    metrics = measure_retrieval(torch.ones(20, 4) / 2, torch.ones(20, 4) / 2, texts)
    assert metrics["image_to_text_recall@10"] == 0.0
    assert metrics["text_to_image_recall@10"] == 0.0


def test_a_model_that_returns_no_numbers_finds_nothing() -> None:
    texts = UniqueTexts.of([[f"{image}"] for image in range(20)])
    metrics = measure_retrieval(torch.full((20, 4), torch.nan), torch.ones(20, 4), texts)
    assert metrics["image_to_text_recall@10"] == 0.0
    assert metrics["text_to_image_recall@10"] == 0.0


def test_a_text_of_several_images_is_a_hit_for_each() -> None:
    texts = UniqueTexts.of([["same"], ["same", "own"], ["other"]])
    assert texts.counts.tolist() == [2, 1, 1]
    assert texts.images == [[0, 1], [1], [2]]
    images = _unit([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    features = _unit([[1.0, 0.05, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    metrics = measure_retrieval(images, features, texts)
    assert metrics["image_to_text_recall@1"] == 1.0
    assert metrics["text_to_image_recall@1"] == 1.0


def test_chance_is_what_random_features_score() -> None:
    rng = np.random.default_rng(0)
    texts = UniqueTexts.of([[f"{image}.{number}" for number in range(1 + image % 4)] for image in range(40)])
    scores: dict[str, list[float]] = {}
    for _ in range(300):
        images = torch.from_numpy(rng.normal(size=(40, 30)))
        features = torch.from_numpy(rng.normal(size=(len(texts.texts), 30)))
        for name, value in measure_retrieval(images, features, texts).items():
            scores.setdefault(name, []).append(value)
    for name in ("image_to_text_recall@1", "image_to_text_recall@10", "text_to_image_recall@5"):
        spread = np.std(scores[name]) / np.sqrt(300)
        assert abs(np.mean(scores[name]) - scores[f"chance_{name}"][0]) < 4 * spread


def test_ranks_count_equal_candidates_as_often_as_they_stand() -> None:
    queries, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.7, 0.0], [0.5, 1.0]])
    ranks = rank_matches(queries, candidates, Matches.of([[0]]), np.array([1, 3, 2]))
    assert ranks.tolist() == [5]  # three that score higher and two that tie
