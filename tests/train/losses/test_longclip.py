import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs
from train.loss import make_loss
from train.losses.longclip import LongCLIP, reduce_features
from train.request import Present, Text, View


def reduced(features: np.ndarray, components: int) -> np.ndarray:
    mean = features.mean(0)
    _, _, directions = np.linalg.svd(features - mean, full_matrices=False)
    return mean + (features - mean) @ directions[:components].T @ directions[:components]


def smoothed(logits: np.ndarray, smoothing: float) -> float:
    """Return both directions' mean cross-entropy with targets of 1 - smoothing on the diagonal and the rest spread evenly."""
    targets = (1 - smoothing) * np.eye(len(logits)) + smoothing / len(logits)
    return float(-sum((targets * log_softmax(matrix)).sum(1).mean() for matrix in (logits, logits.T)) / 2)


@pytest.mark.parametrize(("components", "smoothing", "weight"), [(3, 0.1, 1.0), (1, 0.0, 0.1), (5, 0.3, 2.0)])
def test_reference(components: int, smoothing: float, weight: float) -> None:
    loss = LongCLIP(components=components, smoothing=smoothing, short_weight=weight)
    outputs = make_outputs(loss.needs, 9)
    images, there = array(outputs, View()), array(outputs, Present(loss.short))
    assert 2 < there.sum() < 9
    coarse = reduced(images, components)
    found = loss(outputs)
    expected = {
        "longclip_long": smoothed(7.0 * images @ array(outputs, Text()).T, smoothing),
        "longclip_short": weight * smoothed(7.0 * coarse[there] @ array(outputs, loss.short)[there].T, smoothing),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    whole = weight * smoothed(7.0 * images[there] @ array(outputs, loss.short)[there].T, smoothing)
    assert expected["longclip_short"] != pytest.approx(whole, rel=1e-3)


def test_smoothing_is_that_of_torch() -> None:
    loss = LongCLIP(components=3)
    outputs = make_outputs(loss.needs, 8, changed={Present(loss.short): torch.ones(8, dtype=torch.bool)})
    coarse = torch.tensor(reduced(array(outputs, View()), 3), dtype=torch.float32)
    logits = 7.0 * coarse @ outputs[loss.short].T
    expected = sum(
        torch.nn.functional.cross_entropy(matrix, torch.arange(8), label_smoothing=0.1) for matrix in (logits, logits.T)
    )
    torch.testing.assert_close(loss(outputs)["longclip_short"], expected / 2)


def test_nothing_reduced_and_nothing_smoothed_is_info_nce() -> None:
    loss = LongCLIP(components=8, smoothing=0.0)
    outputs = make_outputs(loss.needs, 9)
    outputs.tensors[loss.short.key] = outputs[Text()]  # type: ignore[index]
    outputs.tensors[Present(loss.short).key] = torch.ones(9, dtype=torch.bool)  # type: ignore[index]
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, Text()).T)
    assert [value.item() for value in loss(outputs).values()] == pytest.approx([expected, expected], rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (12, 4), (5, 9)])
@pytest.mark.parametrize("components", [1, 3])
def test_the_derivative_of_the_reduction_is_that_of_finite_differences(shape: tuple[int, int], components: int) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    features = torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
    np.testing.assert_allclose(
        reduce_features(features, components).detach().numpy(), reduced(features.detach().numpy(), components)
    )
    assert torch.autograd.gradcheck(lambda value: reduce_features(value, components), (features,))


def test_as_many_components_as_there_are_change_nothing() -> None:
    features = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(reduced(features.double().numpy(), 5), features.double().numpy(), atol=1e-9)
    assert torch.equal(reduce_features(features, 5), features)
    # Pictures that are all alike have no components; features and gradients stay finite.
    alike = torch.ones(6, 9, requires_grad=True)
    reduce_features(alike, 2).square().sum().backward()
    torch.testing.assert_close(alike.grad, torch.full((6, 9), 2.0))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="components must be at least 1 and smoothing in"):
        make_loss("longclip", {"components": 0})
    with pytest.raises(InputError, match=r"got 32 and 1\.0"):
        make_loss("longclip", {"smoothing": 1.0})
