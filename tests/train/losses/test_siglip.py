from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, make_outputs, pair_outputs
from tests.train.losses.test_info_nce import SIMILARITIES
from tests.train.processes import run_processes
from train.distributed import World
from train.loss import make_loss
from train.losses.siglip import SigLIP
from train.request import Text, View


def reference(cosines: np.ndarray, scale: float, bias: float) -> float:
    signs = 2 * np.eye(len(cosines)) - 1
    return float(np.log1p(np.exp(-signs * (scale * cosines + bias))).sum() / len(cosines))


def test_golden_value() -> None:
    assert SigLIP()(pair_outputs(SIMILARITIES))["siglip"].item() == pytest.approx(2.796868558, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_reference_in_chunks_of_any_size(chunk: int) -> None:
    outputs = make_outputs((View(), Text()), 9)
    loss = SigLIP(bias=-2.0, chunk=chunk)
    found = loss(outputs)["siglip"]
    expected = reference(array(outputs, View()) @ array(outputs, Text()).T, 7.0, -2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    whole = make_outputs((View(), Text()), 9)
    plain = SigLIP(bias=-2.0)
    plain(whole)["siglip"].backward()
    torch.testing.assert_close(outputs[View()].grad, whole[View()].grad)
    torch.testing.assert_close(loss.bias.grad, plain.bias.grad)


def test_memory_does_not_hold_all_pairs() -> None:
    # What is kept for the way back is the inputs, not the pairs: the largest saved tensor has n x d numbers.
    outputs = make_outputs((View(), Text()), 64)
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SigLIP(chunk=16)(outputs)
    assert max(saved) <= 64 * 16
    assert max(saved) < 64 * 64


# ---- Samples that share a label ---------------------------------------------------------------------------------------

LABELS = np.array([2, -1, 2, 0, -1, 0, 2, 3])


def labelled_reference(cosines: np.ndarray, labels: np.ndarray, same_label: str) -> float:
    total = 0.0
    for i, row in enumerate(7.0 * cosines - 2.0):
        for j, logit in enumerate(row):
            is_alike = i != j and labels[i] == labels[j] and labels[i] >= 0
            if is_alike and same_label == "masked":
                continue
            total += np.log1p(np.exp(-logit if i == j or is_alike else logit))
    return total / len(labels)


def measure(same_label: str, chunk: int, world: World, labels: np.ndarray = LABELS) -> dict[str, torch.Tensor]:
    """Return value and gradients, averaged over the processes as the trainer averages them."""
    loss = SigLIP(bias=-2.0, chunk=chunk, label="copies", same_label=same_label)
    outputs = make_outputs(loss.needs, len(labels), world, changed={loss.label: torch.tensor(labels)})
    found = loss(outputs)["siglip"]
    found.backward()
    return {
        "value": world.mean(found),
        "bias": world.mean(loss.bias.grad),
        "scale": world.mean(outputs.logit_scale.grad),
        "images": world.gather(outputs[View()].grad) / world.size,
        "texts": world.gather(outputs[Text()].grad) / world.size,
    }


def measure_chunks(world: World) -> dict[str, torch.Tensor]:
    return {
        f"{same_label}.{chunk}.{name}": value
        for same_label in ("match", "masked")
        for chunk in (1, 3, 100)
        for name, value in measure(same_label, chunk, world).items()
    }


@pytest.mark.parametrize("same_label", ["match", "masked"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_labels_by_the_reference(same_label: str, chunk: int) -> None:
    outputs = make_outputs((View(), Text()), len(LABELS))
    cosines = array(outputs, View()) @ array(outputs, Text()).T
    expected = labelled_reference(cosines, LABELS, same_label)
    assert measure(same_label, chunk, World())["value"].item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(reference(cosines, 7.0, -2.0), rel=1e-3)


@pytest.mark.parametrize("same_label", ["match", "masked"])
@pytest.mark.parametrize("labels", [np.arange(8), np.full(8, -1)])
def test_labels_of_their_own_change_nothing(same_label: str, labels: np.ndarray) -> None:
    plain = SigLIP(bias=-2.0)
    outputs = make_outputs(plain.needs, 8)
    expected = plain(outputs)["siglip"]
    expected.backward()
    found = measure(same_label, 3, World(), labels)
    torch.testing.assert_close(found["value"], expected)
    torch.testing.assert_close(found["images"], outputs[View()].grad)


def test_masked_pairs_have_no_gradient() -> None:
    # All alike: each picture learns from its own text alone.
    found = measure("masked", 3, World(), np.zeros(8, dtype=np.int64))
    outputs = make_outputs((View(), Text()), 8)
    images, texts = array(outputs, View()), array(outputs, Text())
    own = 7.0 * (images * texts).sum(1) - 2.0
    expected = -(7.0 / 8 / (1 + np.exp(own)))[:, None] * texts
    np.testing.assert_allclose(found["images"].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_labels_over_several_processes(size: int, tmp_path: Path) -> None:
    alone = measure_chunks(World())
    for found in run_processes(size, tmp_path, measure_chunks):
        for name, value in alone.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="same_label is match or masked, got 'positive'"):
        make_loss("siglip", {"label": "copies", "same_label": "positive"})
