"""Tokens are drawn with the probabilities that temperature, top_k and top_p say, and each row from its own numbers."""

import numpy as np
import pytest
import torch

from curate.models.engine import Sampling
from curate.models.token_choice import TokenChoice

LOGITS = torch.log(torch.tensor([0.5, 0.05, 0.25, 0.2]))
NUM_ROWS = 20_000


def shares(sampling: Sampling, logits: torch.Tensor = LOGITS) -> list[float]:
    """Return how often each token is drawn."""
    choice = TokenChoice(sampling, range(NUM_ROWS), 1)
    chosen = choice(torch.zeros((NUM_ROWS, 1)), logits.expand(NUM_ROWS, -1)).argmax(dim=-1)
    return [float(share) for share in torch.bincount(chosen, minlength=len(logits)) / NUM_ROWS]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.05, 0.25, 0.2]),
        (Sampling(temperature=0.5), [0.25 / 0.355, 0.0025 / 0.355, 0.0625 / 0.355, 0.04 / 0.355]),
        (Sampling(temperature=1.0, top_k=2), [2 / 3, 0.0, 1 / 3, 0.0]),
        # 0.5 is below 0.7, so the token that crosses the line, of 0.25, belongs to it.
        (Sampling(temperature=1.0, top_p=0.7), [2 / 3, 0.0, 1 / 3, 0.0]),
        (Sampling(temperature=1.0, top_p=0.01), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(sampling: Sampling, expected: list[float]) -> None:
    # Four standard deviations of a share of 20,000 draws are 0.014.
    assert shares(sampling) == pytest.approx(expected, abs=0.014)


def test_a_forbidden_token_is_never_drawn() -> None:
    assert shares(Sampling(temperature=2.0), torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0]))[0::2] == [0.0, 0.0]


def test_log_probabilities_are_those_before_temperature() -> None:
    choice = TokenChoice(Sampling(temperature=0.3, top_k=1, log_probabilities=True), [0], 2)
    for _ in range(2):
        choice(torch.zeros((1, 1)), LOGITS[None])
    assert choice.mean_log_probability(0, 2) == pytest.approx(np.log(0.5))
    assert choice.mean_log_probability(0, 0) is None


def test_every_row_has_its_own_mean() -> None:
    choice = TokenChoice(Sampling(log_probabilities=True), [0, 1], 3)
    steps = [[LOGITS, LOGITS.flip(0)], [torch.zeros(4), LOGITS], [LOGITS, torch.zeros(2).repeat(2)]]
    for logits in steps:
        choice(torch.zeros((2, 1)), torch.stack(logits))
    half, quarter = np.log(0.5), np.log(0.25)
    assert choice.mean_log_probability(0, 3) == pytest.approx((half + quarter + half) / 3)
    assert choice.mean_log_probability(0, 1) == pytest.approx(half)
    assert choice.mean_log_probability(1, 3) == pytest.approx((half + half + quarter) / 3)


def test_each_step_draws_with_its_own_number() -> None:
    """With or without the probabilities being kept."""
    flat = torch.zeros(1, 1000)
    for is_kept in (False, True):
        choice = TokenChoice(Sampling(temperature=1.0, log_probabilities=is_kept), [5], 4)
        drawn = [int(choice(torch.zeros((1, 1)), flat).argmax()) for _ in range(4)]
        assert drawn == [int(number * 1000) for number in np.random.default_rng(5).random(4)]
