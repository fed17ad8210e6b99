import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, log_softmax, make_objective, make_outputs
from train.losses.declip import _MASKED, _VIEW
from train.request import Ids, Text, Tokens, View

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
    assert -0.2 <= terms["declip_self"].item() <= 0.2


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
