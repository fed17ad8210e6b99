from collections.abc import Mapping

import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import make_outputs
from train.distributed import World
from train.loss import Loss, Objective, discover_losses, make_loss
from train.losses.info_nce import InfoNCE
from train.request import Shape, Teacher, Text, View

SHAPE = Shape(embed_dim=8, image_width=8, text_width=8, vocab_size=9, context_length=5, is_text_causal=True)


class TwoTerms(Loss):
    """The mean cosine of the pairs, and a parameter."""

    def __init__(self, *, start: float = 3.0) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(start))

    def forward(self, outputs) -> Mapping[str, torch.Tensor]:
        return {"cosine": (outputs[View()] * outputs[Text()]).sum(1).mean(), "bias": self.bias}


class Follower(TwoTerms):
    """A loss with a teacher and layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.needs = (View(), Teacher(View()))
        self.teacher_momentum = 0.75

    def build(self, shape: Shape) -> None:
        self.head = torch.nn.Linear(shape.embed_dim, 2)


def outputs(world: World | None = None):
    return make_outputs((View(), Text()), 4, world)


def test_losses_are_found_by_file_name() -> None:
    assert "info_nce" in discover_losses()
    assert isinstance(make_loss("info_nce", {}), InfoNCE)
    assert make_loss("info_nce", {"local_loss": False}).local_loss is False


def test_wrong_names_and_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown loss 'nce' \(did you mean 'hn_nce'\?\); there are: .*info_nce"):
        make_loss("nce", {})
    with pytest.raises(InputError, match="loss 'info_nce' has no option 'temperature'; it has: weight, local_loss"):
        make_loss("info_nce", {"temperature": 1.0})
    with pytest.raises(
        InputError, match="option 'local_loss' of loss 'info_nce' must be of type bool like True, got 3"
    ):
        make_loss("info_nce", {"local_loss": 3})


def test_options_take_whole_numbers_and_lists() -> None:
    assert make_loss("hn_nce", {"beta": 1}).beta == 1.0
    assert make_loss("multi_text", {"columns": ["a", "b"]}).texts.columns == ("a", "b")


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


def test_objective_asks_for_each_thing_once() -> None:
    objective = Objective({"info_nce": 1.0, "cyclip": 1.0, "alip": 1.0})
    assert objective.needs[:2] == (View(), Text())
    assert len(set(objective.needs)) == len(objective.needs)
    assert not objective.locks_images
    assert objective.initial_logit_scale == 0.0
    assert Objective({"info_nce": 1.0, "siglip": 1.0}).initial_logit_scale == 10.0


def test_objective_builds_layers_and_leads_the_teacher() -> None:
    objective = Objective({"info_nce": 1.0})
    objective.losses["follower"] = Follower()
    towers = torch.nn.Linear(2, 2)
    objective.build(SHAPE, lambda: torch.nn.Linear(2, 2))
    assert "losses.follower.head.weight" in objective.state_dict()
    assert objective.teacher is not None
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())
    for _ in range(3):
        # This loss says nothing of a start of its own: the same share at every step.
        before = objective.state_dict()["teacher.weight"].clone()
        objective.follow(towers)
        torch.testing.assert_close(objective.state_dict()["teacher.weight"], 0.75 * before + 0.25 * towers.weight)
    assert objective.state_dict()["num_teacher_updates"].item() == 3


def test_no_teacher_without_a_request() -> None:
    objective = Objective({"info_nce": 1.0})
    objective.build(SHAPE, lambda: pytest.fail("copied the towers"))
    assert objective.teacher is None
    objective.follow(torch.nn.Linear(2, 2))


def test_one_process_gathers_nothing() -> None:
    own = outputs()
    assert own.all(View()) is own[View()]
    assert own.own_rows.tolist() == [0, 1, 2, 3]
    assert make_outputs((View(),), 16, World(rank=2, size=4)).own_rows.tolist() == [8, 9, 10, 11]
