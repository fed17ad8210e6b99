import math

import pytest
import torch

from train.loss import Outputs
from train.losses.info_nce import InfoNCE

# Rows are images, columns texts: with texts the unit vectors and images its rows, this is the matrix of products.
SIMILARITIES = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.7, 0.4], [0.0, 0.5, 0.6]])


@pytest.mark.parametrize("local_loss", [True, False])
def test_golden_value(local_loss: bool) -> None:
    outputs = Outputs(image_features=SIMILARITIES, text_features=torch.eye(3), logit_scale=torch.tensor(10.0))
    terms = InfoNCE(local_loss=local_loss)(outputs)
    assert terms["info_nce"].item() == pytest.approx(0.112142890, abs=1e-7)


def test_equal_features_cannot_be_told_apart() -> None:
    same = torch.ones(7, 4) / 2
    outputs = Outputs(image_features=same, text_features=same, logit_scale=torch.tensor(14.0))
    assert InfoNCE()(outputs)["info_nce"].item() == pytest.approx(math.log(7), abs=1e-6)


def test_both_directions_count() -> None:
    features = torch.nn.functional.normalize(SIMILARITIES, dim=1)
    one = Outputs(image_features=features, text_features=torch.eye(3), logit_scale=torch.tensor(5.0))
    other = Outputs(image_features=torch.eye(3), text_features=features, logit_scale=torch.tensor(5.0))
    torch.testing.assert_close(InfoNCE()(one)["info_nce"], InfoNCE()(other)["info_nce"])
