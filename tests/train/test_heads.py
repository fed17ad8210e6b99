import numpy as np
import pytest
import torch

from train.distributed import World
from train.heads import BatchNorm, Projector, num_heads, sum_token_losses


def test_batch_norm_is_torchs() -> None:
    rows = torch.randn(7, 5) * 3 + 2
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.arange(1.0, 6.0))
            module.bias.copy_(torch.arange(5.0))
    torch.testing.assert_close(ours(rows, World()), theirs(rows))
    assert len(list(BatchNorm(5, is_affine=False).parameters())) == 0


def test_projector_is_its_layers_in_order() -> None:
    torch.manual_seed(0)
    projector = Projector((6, 8, 8, 4), is_last_normalised=True)
    rows = torch.randn(9, 6)
    hidden = rows
    for number, layer in enumerate(projector.layers):
        hidden = torch.nn.functional.batch_norm(layer(hidden), None, None, training=True)
        hidden = torch.relu(hidden) if number < 2 else hidden
    torch.testing.assert_close(projector(rows, World()), hidden)
    assert Projector((6, 8, 4))(rows, World()).mean(0).abs().max() > 1e-3  # the end is left as it is


def test_heads_divide_the_width() -> None:
    assert [num_heads(width) for width in (512, 768, 64, 96, 10)] == [8, 12, 1, 1, 1]


def token_losses(chunk: int, *, count: int = 23, autocast: bool = False) -> tuple[torch.Tensor, ...]:
    """Return the sum for fixed tokens, its gradients by tokens, weight and bias, and the inputs."""
    generator = torch.Generator().manual_seed(4)
    layer = torch.nn.Linear(6, 40)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tokens = torch.randn(count, 6, generator=generator).requires_grad_()
    ids = torch.randint(0, 40, (count,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total = sum_token_losses(layer, tokens, ids, chunk)
    total.backward()
    return total, tokens.grad, layer.weight.grad, layer.bias.grad, tokens, layer.weight, layer.bias, ids


def reference_losses(tokens, weight, bias, ids) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Return sum and gradients as worked out by hand: what comes back to an output is its probability, less one where it was right."""
    rows, matrix, shift = (value.detach().numpy().astype(np.float64) for value in (tokens, weight, bias))
    outputs = rows @ matrix.T + shift
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    right = np.arange(len(rows)), ids.numpy()
    total, back = -np.log(probabilities[right]).sum(), probabilities.copy()
    back[right] -= 1
    return total, back @ matrix, back.T @ rows, back.sum(0)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_token_losses_and_their_gradients(chunk: int) -> None:
    *found, tokens, weight, bias, ids = token_losses(chunk)
    for value, expected in zip(found, reference_losses(tokens, weight, bias, ids), strict=True):
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [5, 100])
def test_token_losses_under_autocast(chunk: int) -> None:
    *found, tokens, weight, bias, ids = token_losses(chunk, autocast=True)
    assert found[0].dtype == torch.float32
    total, *gradients = reference_losses(tokens, weight, bias, ids)
    assert found[0].item() == pytest.approx(total, rel=1e-2)
    assert found[0].item() != pytest.approx(total, rel=1e-6)  # the layer did run in bfloat16
    for value, expected in zip(found[1:], gradients, strict=True):
        assert np.abs(value.numpy() - expected).max() < 0.03 * np.abs(expected).max()


def test_no_tokens_have_no_loss_but_gradients() -> None:
    for value in token_losses(5, count=0)[:4]:
        assert value.abs().sum() == 0


def test_outputs_are_not_kept() -> None:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_losses(5)
        assert kept
        assert not {5 * 40, 3 * 40, 23 * 40} & set(kept)
        kept.clear()
        token_losses(23)
    assert 23 * 40 in kept  # of one chunk there is no need to compute them again


@pytest.mark.parametrize("chunk", [5, 1024])
def test_token_losses_are_weighed(chunk: int) -> None:
    torch.manual_seed(0)
    layer, tokens, ids = torch.nn.Linear(6, 9), torch.randn(13, 6, requires_grad=True), torch.randint(0, 9, (13,))
    weights = torch.rand(13)
    total = sum_token_losses(layer, tokens, ids, chunk, weights)
    total.backward()
    found, tokens.grad = tokens.grad, None
    expected = sum(weights[i] * torch.nn.functional.cross_entropy(layer(tokens[i]), ids[i]) for i in range(13))
    expected.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found, tokens.grad)
