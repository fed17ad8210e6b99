import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn import functional

from schemas.errors import InputError
from tests.train.losses.outputs import (
    WIDTH,
    array,
    assert_gradient,
    clip_reference,
    log_softmax,
    make_outputs,
    pair_outputs,
    slopes,
)
from tests.train.losses.scenes import write_rich_scenes
from tests.train.processes import run_processes
from tests.train.training import TINY, run_training
from train import distributed as joined_processes
from train.config import TrainConfig
from train.distributed import World
from train.loss import Outputs
from train.losses.info_nce import InfoNCE
from train.metrics import read_metrics
from train.request import Text, View
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")

# Rows are images, columns texts.
SIMILARITIES = [[0.9, 0.1, 0.3], [0.2, 0.7, 0.4], [0.0, 0.5, 0.6]]


@pytest.mark.parametrize("local_loss", [True, False])
def test_golden_value(local_loss: bool) -> None:
    terms = InfoNCE(local_loss=local_loss)(pair_outputs(SIMILARITIES))
    assert terms["info_nce"].item() == pytest.approx(0.112142890, abs=1e-7)


def test_reference() -> None:
    outputs = make_outputs((View(), Text()), 9)
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, Text()).T)
    assert InfoNCE()(outputs)["info_nce"].item() == pytest.approx(expected, rel=1e-5)


def test_equal_features_cannot_be_told_apart() -> None:
    outputs = pair_outputs(np.ones((7, 7)) / 2)
    assert InfoNCE()(outputs)["info_nce"].item() == pytest.approx(math.log(7), abs=1e-6)


def test_both_directions_count() -> None:
    one, other = pair_outputs(SIMILARITIES), pair_outputs(np.transpose(SIMILARITIES))
    torch.testing.assert_close(InfoNCE()(one)["info_nce"], InfoNCE()(other)["info_nce"])


@pytest.mark.parametrize("local_loss", [True, False])
def test_directions_have_weights(local_loss: bool) -> None:
    """ConVIRT's lambda, 0.75 for the images' choice among texts; only the ratio matters."""
    outputs = make_outputs((View(), Text()), 6)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    to_texts, to_images = (-np.diag(log_softmax(matrix)).mean() for matrix in (logits, logits.T))
    assert abs(to_texts - to_images) > 1e-3
    for weights in ((0.75, 0.25), (6.0, 2.0)):
        loss = InfoNCE(local_loss=local_loss, image_weight=weights[0], text_weight=weights[1])
        assert loss(outputs)["info_nce"].item() == pytest.approx(0.75 * to_texts + 0.25 * to_images, rel=1e-5)
    only = InfoNCE(local_loss=local_loss, image_weight=0.0, text_weight=2.0)
    assert only(outputs)["info_nce"].item() == pytest.approx(to_images, rel=1e-5)


def test_equal_weights_change_nothing_to_the_bit() -> None:
    found = []
    for loss in (InfoNCE(), InfoNCE(image_weight=0.5, text_weight=0.5), plain):
        outputs = make_outputs((View(), Text()), 9)
        value = loss(outputs)["info_nce"]
        value.backward()
        found.append((value, outputs[View()].grad, outputs[Text()].grad, outputs.logit_scale.grad))
    for other in found[:2]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(other, found[2], strict=True))


def plain(outputs: Outputs) -> dict[str, torch.Tensor]:
    """CLIP's loss as it is without weights."""
    own = torch.arange(len(outputs[View()]))
    image_logits = outputs.logit_scale * outputs[View()] @ outputs[Text()].T
    text_logits = outputs.logit_scale * outputs[Text()] @ outputs[View()].T
    return {"info_nce": (functional.cross_entropy(image_logits, own) + functional.cross_entropy(text_logits, own)) / 2}


def test_wrong_weights() -> None:
    for weights in ((0.0, 0.0), (-1.0, 2.0)):
        with pytest.raises(InputError, match="must be 0 or more, and one of them above, got"):
            InfoNCE(image_weight=weights[0], text_weight=weights[1])


def focal_reference(logits: np.ndarray, gamma: float) -> float:
    """Return the focal loss of a matrix of logits, row by row and column by column."""
    values = []
    for matrix in (logits, logits.T):
        for row, numbers in enumerate(matrix):
            probability = np.exp(numbers[row]) / sum(np.exp(number) for number in numbers)
            values.append(-((1 - probability) ** gamma) * np.log(probability))
    return float(np.mean(values))


@pytest.mark.parametrize("local_loss", [True, False])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_reference(gamma: float, local_loss: bool) -> None:
    outputs = make_outputs((View(), Text()), 6)
    images, texts = (array(outputs, request) for request in (View(), Text()))
    value = InfoNCE(local_loss=local_loss, focal=gamma)(outputs)["info_nce"]
    assert value.item() == pytest.approx(focal_reference(7.0 * images @ texts.T, gamma), rel=1e-5)
    value.backward()
    assert_gradient(outputs[View()].grad, slopes(lambda rows: focal_reference(7.0 * rows @ texts.T, gamma), images))
    assert_gradient(outputs[Text()].grad, slopes(lambda rows: focal_reference(7.0 * images @ rows.T, gamma), texts))


def test_focal_is_infonce_at_gamma_zero_and_near_it() -> None:
    def measure(gamma: float) -> list[torch.Tensor]:
        outputs = make_outputs((View(), Text()), 9)
        value = InfoNCE(focal=gamma)(outputs)["info_nce"]
        value.backward()
        return [value.detach(), outputs[View()].grad, outputs[Text()].grad, outputs.logit_scale.grad]

    outputs = make_outputs((View(), Text()), 9)
    plain(outputs)["info_nce"].backward()
    expected = [
        plain(outputs)["info_nce"].detach(),
        outputs[View()].grad,
        outputs[Text()].grad,
        outputs.logit_scale.grad,
    ]
    assert all(torch.equal(*pair) for pair in zip(measure(0.0), expected, strict=True))
    for found, value in zip(measure(1e-6), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)
    assert measure(2.0)[0] < expected[0] - 0.1


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_pairs_that_are_certain_has_gradients(gamma: float) -> None:
    outputs = pair_outputs(np.eye(3), scale=1000.0)
    outputs.tensors[View().key].requires_grad_()
    value = InfoNCE(focal=gamma)(outputs)["info_nce"]
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(outputs[View()].grad, torch.zeros(3, 3))


@pytest.mark.parametrize("local_loss", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_are_the_mean_of_each_groups_own_loss(groups: int, local_loss: bool) -> None:
    outputs = make_outputs((View(), Text()), 8)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    parts = [slice(first, first + 8 // groups) for first in range(0, 8, 8 // groups)]
    expected = np.mean([clip_reference(logits[part, part]) for part in parts])
    value = InfoNCE(local_loss=local_loss, groups=groups)(outputs)["info_nce"]
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


GROUPS = (1, 2, 3, 4, 6, 12)


def measure_groups(world: World) -> dict[str, torch.Tensor]:
    """Return losses and gradients by groups, as the trainer averages them, and the bytes that one step sent."""
    found: dict[str, torch.Tensor] = {}
    sent: list[int] = []
    gather, scatter = distributed.all_gather, joined_processes._REDUCE_SCATTER
    distributed.all_gather = lambda parts, *rest, **named: (
        sent.append(sum(p.nbytes for p in parts)),
        gather(parts, *rest, **named),
    )
    if scatter is not None:
        joined_processes._REDUCE_SCATTER = lambda own, rows, **named: (
            sent.append(rows.nbytes),
            scatter(own, rows, **named),
        )
    for groups, focal, local_loss in itertools.product(GROUPS, (0.0, 2.0), (True, False)):
        outputs = make_outputs((View(), Text()), 12, world)
        sent.clear()
        value = InfoNCE(groups=groups, focal=focal, local_loss=local_loss)(outputs)["info_nce"]
        value.backward()
        name = f"{groups}.{focal}.{local_loss}"
        found[f"bytes.{name}"] = torch.tensor(sum(sent))
        found[f"value.{name}"] = world.mean(value)
        for request in (View(), Text()):
            found[f"{request.key}.{name}"] = world.gather(outputs[request].grad / world.size)
        found[f"scale.{name}"] = world.mean(outputs.logit_scale.grad)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_groups_are_the_same_on_several_processes_and_send_less(size: int, tmp_path: Path) -> None:
    alone, shared = measure_groups(World()), run_processes(size, tmp_path, measure_groups)
    for found in shared:
        for name, value in alone.items():
            if not name.startswith("bytes"):
                torch.testing.assert_close(
                    found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )
        sent = {groups: int(found[f"bytes.{groups}.0.0.True"]) for groups in GROUPS}
        assert sent[1] >= 2 * 12 * WIDTH * 4  # both towers' features of the whole batch
        for groups in GROUPS:
            # Of three groups and two or four processes neither divides the other: everything travels.
            share = 0 if groups % size == 0 else sent[1] // groups if size % groups == 0 else sent[1]
            assert sent[groups] == share


def test_groups_in_a_run_of_two_processes(tmp_path: Path) -> None:
    dataset = write_rich_scenes(tmp_path)
    losses = {"info_nce": {"groups": 2, "focal": 1.0}}
    config = {**TINY, "losses": losses, "samples_seen": 16 * 3}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = run_training(dataset, tmp_path / "two", config, launcher=launcher)
    assert process.returncode == 0, process.stdout
    train(str(dataset), str(tmp_path / "one"), TrainConfig(**config))
    two, one = ([record["loss"] for record in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("two", "one"))
    assert len(one) == 3
    np.testing.assert_allclose(two, one, rtol=2e-3)


def test_wrong_focal_and_groups() -> None:
    for options in ({"focal": -1.0}, {"focal": math.inf}, {"groups": 0}):
        with pytest.raises(InputError, match="focal must be 0 or more and groups at least 1, got"):
            InfoNCE(**options)
    with pytest.raises(InputError, match="a batch of 8 does not divide into 3 groups"):
        InfoNCE(groups=3)(make_outputs((View(), Text()), 8))
