from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from schemas.errors import InputError
from tests.train.dataset_builder import Sample, write_dataset
from tests.train.losses.outputs import SCALE, array, clip_reference, make_outputs
from tests.train.training import TINY, draw_scene, encode_picture, make_uid
from train.config import TrainConfig
from train.loss import Outputs
from train.losses.importance import ImportanceContrast
from train.metrics import read_metrics
from train.rates import relative_rates
from train.request import Rate, Text, View
from train.trainer import train

LOSS = ImportanceContrast()


def test_reference() -> None:
    rates = torch.tensor([2.0, 0.5, 0.02, 1.0])  # 1 / 0.02 is capped at 10
    outputs = make_outputs(LOSS.needs, 4, changed={Rate(): rates})
    cosines = array(outputs, View()) @ array(outputs, Text()).T
    factors = np.array([0.5, 2.0, 10.0, 1.0])
    losses = []
    for matrix in (cosines, cosines.T):
        powers = np.exp(SCALE * matrix)
        sums = (powers * factors).sum(1) - np.diag(powers) * factors + np.diag(powers)
        losses.append(np.log(sums) - SCALE * np.diag(matrix))
    assert LOSS(outputs)["importance"].item() == pytest.approx(float((factors * np.mean(losses, 0)).mean()), rel=1e-5)


def test_equal_rates_are_info_nce() -> None:
    outputs = make_outputs(LOSS.needs, 5, changed={Rate(): torch.ones(5)})
    logits = SCALE * array(outputs, View()) @ array(outputs, Text()).T
    assert LOSS(outputs)["importance"].item() == pytest.approx(clip_reference(logits), rel=1e-5)


def _expect(loss: ImportanceContrast, probabilities: np.ndarray, rates: np.ndarray) -> float:
    """Return the expectation of the loss over all batches of three independent draws of four samples."""
    torch.manual_seed(0)
    images, texts = (functional.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    total = 0.0
    for batch in product(range(4), repeat=3):
        rows = torch.tensor(batch)
        tensors = {View().key: images[rows], Text().key: texts[rows], Rate().key: torch.tensor(rates[list(batch)])}
        outputs = Outputs(tensors=tensors, logit_scale=torch.tensor(3.0))
        total += float(np.prod(probabilities[list(batch)])) * loss(outputs)["importance"].item()
    return total


def test_negatives_are_corrected_too() -> None:
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    weighted, even = weights / weights.sum(), np.full(4, 0.25)
    rates, ones = relative_rates(weights), np.ones(4)
    expected = _expect(LOSS, even, ones)
    biased, corrected = _expect(LOSS, weighted, ones), _expect(LOSS, weighted, rates)
    # The sums over negatives have the expectation of even draws, their logarithms nearly.
    assert abs(corrected - expected) < 0.35 * abs(biased - expected)


def test_the_expectation_over_pairs_is_that_of_even_draws() -> None:
    """With one draw beside the pair and no correction of negatives, the mean over pairs is that of even draws of the pair."""
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    probabilities, rates = weights / weights.sum(), relative_rates(weights)
    torch.manual_seed(1)
    images, texts = (functional.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    own, loss = 0.0, ImportanceContrast(negatives=False, most=100.0)
    even = 0.0
    for first, second in product(range(4), repeat=2):
        rows = torch.tensor([first, second])
        tensors = {View().key: images[rows], Text().key: texts[rows]}
        chance = probabilities[first] * probabilities[second]
        corrected = torch.tensor(rates[[first, second]])
        own += (
            chance
            * loss(Outputs(tensors={**tensors, "rate": corrected}, logit_scale=torch.tensor(3.0)))["importance"].item()
        )
        for place, row in enumerate((first, second)):
            # The same pair's part alone, drawn evenly beside the other as it is drawn.
            alone = torch.full((2,), 1e9)
            alone[place] = 1.0
            part = loss(Outputs(tensors={**tensors, "rate": alone}, logit_scale=torch.tensor(3.0)))["importance"]
            even += 0.25 * chance / probabilities[row] * part.item()
    assert own == pytest.approx(even, rel=1e-4)


def _write(folder: Path, weights: list[float]) -> str:
    samples = [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_scene(number, 0)),
            captions={"alt_text": f"scene number {number}"},
            weight=weight,
        )
        for number, weight in enumerate(weights)
    ]
    return str(write_dataset(folder, samples))


def test_a_run_takes_the_rates_of_its_weights(tmp_path: Path) -> None:
    data = _write(tmp_path / "data", [4.0 if number % 2 else 1.0 for number in range(32)])
    config = {**TINY, "samples_seen": 48, "losses": {"importance": {"negatives": False}}}
    train(data, str(tmp_path / "run"), TrainConfig(**config))
    corrected = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    train(data, str(tmp_path / "plain"), TrainConfig(**{**config, "losses": {"info_nce": 1.0}}))
    plain = [record["loss"] for record in read_metrics(tmp_path / "plain" / "metrics.jsonl")]
    # Untrained, all pairs lose about the same: the first loss is that of InfoNCE times the mean of 2.5 / weight over the draws.
    assert corrected[0] != plain[0]
    assert corrected[0] == pytest.approx(plain[0], rel=0.5)
    with pytest.raises(InputError, match="replacement: false"):
        train(data, str(tmp_path / "other"), TrainConfig(**{**config, "replacement": False}))
