from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.losses.outputs import (
    array,
    assert_gradient,
    clip_reference,
    log_softmax,
    make_objective,
    make_outputs,
    slopes,
)
from train.losses.declip import _MASKED, _VIEW
from train.request import Ids, Pooled, Text, Tokens, View

OPTIONS = {"bank_size": 12, "hidden": 16}


def build(**options: object):
    loss = make_objective({"declip": {**OPTIONS, **options}}).losses["declip"]
    return loss, make_outputs(loss.needs, 5)


def test_multi_view_and_masked_references() -> None:
    loss, outputs = build()
    views, texts = (View(), _VIEW), (Text(), Text(variant="augmented"))
    pairs = [clip_reference(7.0 * array(outputs, view) @ array(outputs, text).T) for view in views for text in texts]
    rows = array(outputs, Tokens(_MASKED)) @ loss.vocabulary.weight.detach().numpy().T
    rows = log_softmax(rows + loss.vocabulary.bias.detach().numpy())
    ids = array(outputs, Ids(_MASKED))
    hidden = [-rows[i, k, ids[i, k]] for i, k in np.argwhere(ids >= 0)]
    terms = loss(outputs)
    assert terms["declip_multi_view"].item() == pytest.approx(0.4 * np.mean(pairs), rel=1e-5)
    assert terms["declip_masked"].item() == pytest.approx(0.2 * np.mean(hidden), rel=1e-4)
    assert terms["declip_neighbour"].item() == 0.0  # the bank is empty


def test_only_masked_words_get_outputs() -> None:
    loss, outputs = build()
    found: list[torch.Tensor] = []
    loss.vocabulary.register_forward_hook(lambda _layer, _tokens, logits: found.append(logits))
    loss(outputs)
    assert [len(logits) for logits in found] == [int((outputs[Ids(_MASKED)] >= 0).sum())]
    loss(replace(outputs, autocast=lambda: torch.autocast("cpu", torch.bfloat16)))
    assert [logits.dtype for logits in found] == [torch.float32, torch.bfloat16]


def test_no_masked_words_have_no_loss() -> None:
    loss, outputs = build()
    ids = torch.full_like(outputs[Ids(_MASKED)], -1)
    terms = loss(make_outputs(loss.needs, 5, changed={Ids(_MASKED): ids}))
    terms["declip_masked"].backward()
    assert terms["declip_masked"].item() == 0.0
    assert loss.vocabulary.weight.grad.abs().max().item() == 0.0


def mapped(head, rows: np.ndarray) -> np.ndarray:
    """Return what a projector or predictor makes of rows, layer by layer."""
    for number, layer in enumerate(head.layers):
        rows = rows @ layer.weight.detach().numpy().astype(np.float64).T + layer.bias.detach().numpy()
        if number < len(head.norms):
            rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
            norm = head.norms[number]
            if norm.weight is not None:
                rows = rows * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        if number < len(head.layers) - 1:
            rows = np.maximum(rows, 0)
    return rows


def mean_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return float(((rows * others).sum(1) / lengths).mean())


def test_simsiam_reference_and_gradient() -> None:
    loss, _ = build(self_supervised=1.0)
    # So far from random that sign, scale and which view is compared with which all show.
    mine = make_outputs(loss.needs, 5)[Pooled(View())].detach()
    outputs = make_outputs(loss.needs, 5, changed={Pooled(_VIEW): mine + 0.5 * mine.roll(1, 0)})
    first, second = array(outputs, Pooled(View())), array(outputs, Pooled(_VIEW))
    projector, predictor = loss.projector, loss.predictor
    assert [layer.out_features for layer in (*projector.layers, *predictor.layers)] == [16, 16, 16, 8, 16]
    # What a guess is compared with is no function of anything: it stays what it is.
    targets = mapped(projector, first), mapped(projector, second)

    def value(one: np.ndarray, other: np.ndarray) -> float:
        guesses = [mapped(predictor, mapped(projector, rows)) for rows in (one, other)]
        return -(mean_cosine(guesses[0], targets[1]) + mean_cosine(guesses[1], targets[0])) / 2

    found = loss(outputs)["declip_self"]
    assert found.item() == pytest.approx(value(first, second), abs=1e-5)
    assert abs(value(first, second)) > 0.05
    found.backward()
    assert_gradient(outputs[Pooled(View())].grad, slopes(lambda rows: value(rows, second), first))
    assert_gradient(outputs[Pooled(_VIEW)].grad, slopes(lambda rows: value(first, rows), second))


def test_neighbours_come_from_earlier_batches() -> None:
    loss, outputs = build()
    loss(make_outputs(loss.needs, 4))
    bank = loss.bank[:4].numpy().astype(np.float64)
    texts = array(outputs, Text())
    nearest = bank[(texts @ bank.T).argmax(1)]
    losses = [clip_reference(7.0 * array(outputs, view) @ nearest.T) for view in (View(), _VIEW)]
    assert loss(outputs)["declip_neighbour"].item() == pytest.approx(0.2 * np.mean(losses), rel=1e-5)


def test_the_bank_forgets_the_oldest() -> None:
    loss, _ = build()
    batches = [torch.full((5, 8), float(number)) for number in range(4)]
    for batch in batches:
        loss._remember(batch)
    # Twenty texts through twelve places: the last twelve remain.
    assert loss.num_seen.item() == 20
    assert sorted(loss.bank[:, 0].tolist()) == [1.0, 1.0, *[2.0] * 5, *[3.0] * 5]
    loss._remember(torch.arange(30.0)[:, None].expand(-1, 8))
    assert sorted(loss.bank[:, 0].tolist()) == [float(number) for number in range(18, 30)]


def test_weights_are_those_of_the_parts() -> None:
    (loss, outputs), (other, _) = build(), build(multi_view=0.8, neighbour=0.0, self_supervised=0.1, masked=0.0)
    one, two = loss(outputs), other(outputs)
    torch.testing.assert_close(two["declip_multi_view"], 2 * one["declip_multi_view"])
    torch.testing.assert_close(2 * two["declip_self"], one["declip_self"])
    assert two["declip_masked"].item() == 0.0
