from itertools import permutations
from math import factorial, log

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import SCALE, array, assert_gradient, make_outputs, pair_outputs, slopes
from train.losses import rankclip
from train.losses.rankclip import RankCLIP, plackett_luce
from train.request import Text, View

SIDES = (View(), Text())


def unlikeliness(scores: np.ndarray, ranking: np.ndarray) -> float:
    """Choose one after the other, in the order of the ranking, each with its share of what is left."""
    left = sorted(range(len(scores)), key=lambda j: -ranking[j])
    total = 0.0
    while left:
        total += log(sum(np.exp(scores[j] - scores[left[0]]) for j in left))
        left.pop(0)
    return total


def mean_unlikeliness(
    one: np.ndarray, other: np.ndarray, rankings: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
    """Return the mean of both directions over rows and places; `rankings` are those of the two where they are not what they seem."""
    first, second = rankings or (one, other)
    pairs = [unlikeliness(one[i], second[i]) + unlikeliness(other[i], first[i]) for i in range(len(one))]
    return float(np.mean(pairs)) / (2 * len(one))


def test_reference() -> None:
    outputs = make_outputs(SIDES, 7)
    images, texts = (array(outputs, side) for side in SIDES)
    terms = RankCLIP(in_modal=0.5, cross_modal=2.0)(outputs)
    in_modal = mean_unlikeliness(SCALE * images @ images.T, SCALE * texts @ texts.T)
    cross_modal = mean_unlikeliness(SCALE * images @ texts.T, SCALE * texts @ images.T)
    assert terms["rankclip_in_modal"].item() == pytest.approx(0.5 * in_modal, rel=1e-5)
    assert terms["rankclip_cross_modal"].item() == pytest.approx(2.0 * cross_modal, rel=1e-5)


@pytest.mark.parametrize("part", ["in_modal", "cross_modal"])
def test_gradients(part: str) -> None:
    """Against differences of the reference; the orders stay what they are, as they do in any small enough step."""
    outputs = make_outputs(SIDES, 5)
    images, texts = (array(outputs, side) for side in SIDES)

    def value(one: np.ndarray, other: np.ndarray, scale: float = SCALE) -> float:
        matrices = (one @ one.T, other @ other.T) if part == "in_modal" else (one @ other.T, other @ one.T)
        return mean_unlikeliness(scale * matrices[0], scale * matrices[1])

    sum(RankCLIP(**{"in_modal": 0.0, "cross_modal": 0.0, part: 1.0})(outputs).values()).backward()
    assert_gradient(outputs[View()].grad, slopes(lambda rows: value(rows, texts), images))
    assert_gradient(outputs[Text()].grad, slopes(lambda rows: value(images, rows), texts))
    slope = (value(images, texts, SCALE + 1e-5) - value(images, texts, SCALE - 1e-5)) / 2e-5
    assert outputs.logit_scale.grad.item() == pytest.approx(slope, rel=1e-3)


def test_perfect_agreement_is_the_least_of_all_orders() -> None:
    scores = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    losses = {
        order: plackett_luce(scores, torch.tensor([order])).item() for order in permutations((1.0, 2.0, 3.0, 4.0, 5.0))
    }
    assert len(losses) == 120
    agreeing = tuple((scores[0].argsort().argsort() + 1.0).tolist())
    least = min(losses, key=losses.__getitem__)
    assert least == agreeing
    assert losses[least] == pytest.approx(plackett_luce(scores, scores).item())
    assert sorted(losses.values())[1] > losses[least] + 1e-3
    # They are the logarithms of probabilities of all orders.
    assert sum(np.exp(-value) for value in losses.values()) == pytest.approx(1.0, rel=1e-5)


def test_texts_that_rank_as_their_pictures_do_are_the_least_in_the_loss() -> None:
    """The batch's cosines with rows exchanged: nothing but the agreement of both rankings differs."""
    matrix = np.random.default_rng(0).uniform(-1, 1, (4, 4))
    agreeing = matrix + matrix.T
    loss = RankCLIP(in_modal=0.0)
    # A text's similarities to the pictures are a column here, the picture's to the texts a row.
    losses = [
        loss(pair_outputs(agreeing[list(order)]))["rankclip_cross_modal"].item() for order in permutations(range(4))
    ]
    assert min(losses) == losses[0]
    assert sorted(losses)[1] > losses[0] + 1e-4


def test_equal_scores_make_every_order_as_likely() -> None:
    scores = torch.zeros(1, 6)
    for ranking in (torch.arange(6.0)[None], torch.zeros(1, 6)):
        assert plackett_luce(scores, ranking).item() == pytest.approx(log(factorial(6)), rel=1e-5)


def test_equals_keep_their_order() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    tied = plackett_luce(scores, torch.tensor([[0.5, 0.5, 0.9]]))
    torch.testing.assert_close(tied, plackett_luce(scores, torch.tensor([[2.0, 1.0, 3.0]])))


def test_large_scales_are_exact() -> None:
    """At 100 times the cosines the smallest share is exp(-200), which no float32 holds."""
    cosines = np.random.default_rng(0).uniform(-1, 1, (3, 40))
    cosines[:, 0], cosines[:, 1] = 1.0, -1.0
    ranking = np.random.default_rng(1).normal(size=(3, 40))
    scores = torch.tensor(100 * cosines, dtype=torch.float32, requires_grad=True)
    found = plackett_luce(scores, torch.tensor(ranking))
    expected = [unlikeliness(row, order) for row, order in zip(100 * cosines, ranking, strict=True)]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)
    found.sum().backward()
    assert torch.isfinite(scores.grad).all()
    # What is chosen first has all the others beside it, what is chosen last nobody: gradients add up to nothing in each list.
    torch.testing.assert_close(scores.grad.sum(1), torch.zeros(3), rtol=0, atol=1e-3)


def test_orders_have_no_gradient() -> None:
    scores = torch.randn(2, 4, requires_grad=True)
    ranking = torch.randn(2, 4, requires_grad=True)
    plackett_luce(scores, ranking).sum().backward()
    assert ranking.grad is None
    assert scores.grad.abs().max() > 0


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_are_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (1024, chunk):
        monkeypatch.setattr(rankclip, "_CHUNK", size)
        outputs = make_outputs(SIDES, 7)
        total = sum(RankCLIP()(outputs).values())
        total.backward()
        results.append((total, *(outputs[side].grad for side in SIDES), outputs.logit_scale.grad))
    torch.testing.assert_close(results[1], results[0])


def test_parts_of_weight_zero_are_left_out() -> None:
    outputs = make_outputs(SIDES, 4)
    assert list(RankCLIP(in_modal=0.0)(outputs)) == ["rankclip_cross_modal"]
    assert list(RankCLIP(cross_modal=0.0)(outputs)) == ["rankclip_in_modal"]
    for options in ({"in_modal": 0.0, "cross_modal": 0.0}, {"in_modal": -1.0}):
        with pytest.raises(InputError, match="in_modal and cross_modal are 0 or more, and one of them above, got"):
            RankCLIP(**options)


def test_the_authors_sum() -> None:
    """Theirs: both directions of a part, over 32 and the batch, means over rows of sums over places."""
    outputs = make_outputs(SIDES, 6)
    images, texts = (array(outputs, side) for side in SIDES)
    logits = SCALE * images @ texts.T
    rows = [unlikeliness(a, b) for a, b in zip(logits, logits.T, strict=True)]
    columns = [unlikeliness(b, a) for a, b in zip(logits, logits.T, strict=True)]
    expected = (np.mean(rows) + np.mean(columns)) / 32 / 6
    assert RankCLIP()(outputs)["rankclip_cross_modal"].item() == pytest.approx(expected, rel=1e-5)
