import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from schemas.errors import InputError
from tests.train.losses.outputs import array, clip_reference, log_softmax, make_outputs, pair_outputs
from train.loss import Outputs
from train.losses.info_nce import InfoNCE
from train.request import Text, View

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
