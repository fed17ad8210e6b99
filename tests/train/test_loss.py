from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from schemas.errors import InputError
from train.distributed import World
from train.loss import Loss, Objective, Outputs, discover_losses, make_loss
from train.losses.info_nce import InfoNCE


class TwoTerms(Loss):
    """The mean cosine of the pairs, and a parameter."""

    def __init__(self, *, start: float = 3.0) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(start))

    def forward(self, outputs: Outputs) -> Mapping[str, torch.Tensor]:
        return {"cosine": (outputs.image_features * outputs.text_features).sum(1).mean(), "bias": self.bias}


def outputs(count: int = 4) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    features = [torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1) for _ in range(2)]
    return Outputs(image_features=features[0], text_features=features[1], logit_scale=torch.tensor(10.0))


def test_losses_are_found_by_file_name() -> None:
    assert "info_nce" in discover_losses()
    assert isinstance(make_loss("info_nce", {}), InfoNCE)
    assert make_loss("info_nce", {"local_loss": False}).local_loss is False


def test_wrong_names_and_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown loss 'nce'; there are: .*info_nce"):
        make_loss("nce", {})
    with pytest.raises(InputError, match="loss 'info_nce' has no option 'temperature'; it has: weight, local_loss"):
        make_loss("info_nce", {"temperature": 1.0})


def test_objective_weighs_its_losses() -> None:
    single, terms = Objective({"info_nce": 1.0})(outputs())
    assert terms == {}
    double, _ = Objective({"info_nce": {"weight": 2.0, "local_loss": False}})(outputs())
    torch.testing.assert_close(double, 2 * single)


def test_objective_adds_terms_and_trains_a_losss_parameters() -> None:
    objective = Objective({"info_nce": 1.0})
    objective.losses["two"] = TwoTerms()
    objective.weights["two"] = 0.5
    total, terms = objective(outputs())
    assert list(terms) == ["info_nce", "cosine", "bias"]
    torch.testing.assert_close(total, terms["info_nce"] + 0.5 * (terms["cosine"] + terms["bias"]))
    total.backward()
    assert next(objective.parameters()).grad == 0.5


def test_one_process_gathers_nothing() -> None:
    own = outputs()
    assert own.all_image_features is own.image_features
    assert own.first_row == 0
    assert replace(own, world=World(rank=2, size=4)).first_row == 8
