import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, log_softmax, make_objective, make_outputs
from train.losses.sparc import SPARC, contrast_within
from train.request import Ids, Patches, Tokens


def build(count: int = 5, **options: object):
    loss = make_objective({"sparc": options}).losses["sparc"]
    return loss, make_outputs(loss.needs, count)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def apply(layer: torch.nn.Linear, rows: np.ndarray) -> np.ndarray:
    return rows @ layer.weight.detach().numpy().astype(np.float64).T + layer.bias.detach().numpy()


def reference(loss: SPARC, patches: np.ndarray, tokens: np.ndarray, least: float) -> float:
    """Return the paper's equations 2 to 6 of one sample, token by token; `tokens` are those that are there."""
    patches, tokens = apply(loss.patch_map, patches), apply(loss.token_map, tokens)
    groups = []
    for token in tokens:
        similarity = patches @ token
        weights = (similarity - similarity.min()) / (similarity.max() - similarity.min())
        weights[weights < least] = 0
        groups.append((weights / weights.sum()) @ patches)
    logits = 7.0 * unit(tokens) @ unit(np.array(groups)).T
    return float(-(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))).mean() / 2)


@pytest.mark.parametrize("options", [{}, {"least": 0.6}, {"least": 0.0}])
def test_reference(options: dict[str, float]) -> None:
    loss, outputs = build(**options)
    patches, tokens = array(outputs, Patches()), array(outputs, Tokens())
    lengths = (array(outputs, Ids()) >= 0).sum(1)
    assert len(set(lengths.tolist())) > 1
    least = options.get("least", 1 / patches.shape[1])
    # Each text counts once, however many tokens it has.
    parts = [reference(loss, patches[i], tokens[i, : lengths[i]], least) for i in range(5)]
    assert loss(outputs)["sparc"].item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_gradients_flow_through_the_weights_of_patches() -> None:
    loss, outputs = build(count=1, least=0.0)
    loss(outputs)["sparc"].backward()
    patches, tokens = array(outputs, Patches())[0], array(outputs, Tokens())[0]
    length = int((array(outputs, Ids()) >= 0).sum())
    steps = [np.random.default_rng(k).normal(size=value.shape) for k, value in enumerate((patches, tokens))]

    def value(share: float) -> float:
        return reference(loss, patches + share * steps[0], (tokens + share * steps[1])[:length], 0.0)

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    asked = (Patches(), Tokens())
    found = sum((outputs[r].grad[0].numpy() * step).sum() for r, step in zip(asked, steps, strict=True))
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_sample_does_not_see_the_others() -> None:
    loss, outputs = build()
    changed = {}
    for request in (Patches(), Tokens(), Ids()):
        # The second sample stays, all others go round by one.
        order = torch.tensor([3, 1, 4, 0, 2])
        changed[request] = outputs[request].detach()[order]
    alone = make_outputs(loss.needs, 1, changed={r: outputs[r].detach()[1:2] for r in loss.needs})
    one = loss(alone)["sparc"]
    one.backward()
    first = make_outputs(loss.needs, 5)
    other = make_outputs(
        loss.needs,
        5,
        changed={**changed, Patches(): changed[Patches()] * torch.tensor([2.0, 1.0, 3.0, -1.0, 0.5])[:, None, None]},
    )
    for company in (first, other):
        loss.zero_grad()
        loss(company)["sparc"].backward()
        for request in (Patches(), Tokens()):
            torch.testing.assert_close(5 * company[request].grad[1], alone[request].grad[0])


def test_padding_takes_no_part() -> None:
    loss, outputs = build()
    is_padding = outputs[Ids()] < 0
    assert is_padding.any()
    noise = torch.where(is_padding[..., None], 100 * torch.randn(5, 6, 10), outputs[Tokens()].detach())
    other = make_outputs(loss.needs, 5, changed={Tokens(): noise})
    for company in (outputs, other):
        company_loss = loss(company)["sparc"]
        company_loss.backward()
    torch.testing.assert_close(loss(other)["sparc"], loss(outputs)["sparc"])
    assert not other[Tokens()].grad[is_padding].any()
    torch.testing.assert_close(other[Patches()].grad, outputs[Patches()].grad)


def test_one_token_and_no_token_are_nothing_to_tell_apart() -> None:
    tokens = torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1).requires_grad_()
    is_token = torch.tensor([[True, False, False], [False, False, False]])
    losses = contrast_within(tokens, torch.ones(2, 3, 4), is_token, torch.tensor(7.0))
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(2))
    assert torch.isfinite(tokens.grad).all()


def test_equal_patches_are_no_failure() -> None:
    loss, _ = build()
    outputs = make_outputs(loss.needs, 5, changed={Patches(): torch.ones(5, 4, 12)})
    loss(outputs)["sparc"].backward()
    assert torch.isfinite(outputs[Patches()].grad).all()
    assert torch.isfinite(outputs[Tokens()].grad).all()


def test_memory_grows_with_the_batch_not_with_its_square() -> None:
    """Numbers that a step keeps for its way back, besides its inputs and layers; of a loss over the whole batch they are 16 times as many."""
    kept = []
    for count in (4, 16):
        loss, outputs = build(count)
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total = loss(outputs)["sparc"]
        layers = sum(value.untyped_storage().nbytes() for value in loss.parameters())
        kept.append(sum(sizes.values()) - layers)
        total.backward()
    assert 0 < kept[1] <= 4.2 * kept[0]
