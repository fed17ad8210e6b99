import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, log_softmax, make_objective, make_outputs
from tests.train.losses.test_otter import plan
from tests.train.losses.test_simclr import project
from train.losses import prototypes
from train.request import View, wanted_views

SMALL = {"num_prototypes": 5, "num_local": 2, "hidden": 16, "width": 6, "frozen_steps": 0}


def test_reference() -> None:
    loss = make_objective({"prototypes": SMALL}).losses["prototypes"]
    outputs = make_outputs(loss.needs, 7)
    # One pass of all views, so that they are normalised together.
    features = np.split(project(loss.projector, np.concatenate([array(outputs, view) for view in loss.views])), 4)
    weights = loss.prototypes.detach().numpy().astype(np.float64)
    cosines = [rows @ (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T for rows in features]
    losses = []
    for large in (0, 1):
        target = plan(-cosines[large], 0.05, 3)
        np.testing.assert_allclose(target.sum(axis=1), 1)
        losses += [
            -(target * log_softmax(cosines[other] / 0.1)).sum(axis=1).mean() for other in range(4) if other != large
        ]
    assert len(losses) == 6
    assert loss(outputs)["prototypes"].item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_assignments_are_balanced() -> None:
    loss = make_objective({"prototypes": {**SMALL, "iterations": 100}}).losses["prototypes"]
    outputs = make_outputs(loss.needs, 40)
    generator = torch.Generator().manual_seed(0)
    # All pictures are much alike, and the first prototype is the closest to all of them.
    features = torch.nn.functional.normalize(
        torch.ones(2, 40, 6) + 0.1 * torch.randn(2, 40, 6, generator=generator), dim=2
    )
    directions = torch.nn.functional.normalize(torch.randn(5, 6, generator=generator), dim=1)
    directions[0] = 6**-0.5
    assert ((features @ directions.T).argmax(2) == 0).all()
    found = loss.assign(features, directions, outputs)
    torch.testing.assert_close(found.sum(2), torch.ones(2, 40))
    torch.testing.assert_close(found.sum(1), torch.full((2, 5), 8.0), rtol=0.02, atol=0.02)


def test_many_pictures_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (8192, 8):
        monkeypatch.setattr(prototypes, "_CHUNK", chunk)
        loss = make_objective({"prototypes": SMALL}).losses["prototypes"]
        outputs = make_outputs(loss.needs, 7)
        total = loss(outputs)["prototypes"]
        total.backward()
        results.append((total.detach(), loss.prototypes.grad, *(outputs[view].grad for view in loss.views)))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_prototypes_are_still_at_first() -> None:
    objective = make_objective({"prototypes": {**SMALL, "frozen_steps": 2}})
    loss = objective.losses["prototypes"]
    found = []
    for _ in range(4):
        objective.zero_grad()
        loss(make_outputs(loss.needs, 7))["prototypes"].backward()
        found.append(loss.prototypes.grad is not None)
        assert loss.projector.layers[0].weight.grad.abs().max() > 0
    assert found == [False, False, True, True]


def test_crops_that_are_asked_for() -> None:
    views = wanted_views(prototypes.Prototypes().needs)
    assert views[:2] == (View(number=1, scale=(0.14, 1.0)), View(number=2, scale=(0.14, 1.0)))
    assert views[2:] == tuple(View(number=number, scale=(0.05, 0.14), size=96) for number in range(3, 9))
    assert len(wanted_views(prototypes.Prototypes(num_local=0).needs)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_local": -1}, "num_local is 0 or more"),
        ({"local_scale": (0.1,)}, "two shares of the area each"),
        ({"sharpness": 0.0}, "temperature and sharpness are above 0"),
        ({"num_prototypes": 0}, "num_prototypes and iterations 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prototypes.Prototypes(**options)
