import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, log_softmax, make_objective, make_outputs
from train.losses.concept_distillation import ConceptDistillation
from train.request import Pooled


def test_reference() -> None:
    objective = make_objective({"concept_distillation": 1.0})
    loss = objective.losses["concept_distillation"]
    outputs = make_outputs(loss.needs, 6)
    total = 0.0
    for head, (labels, shares) in zip(loss.heads, loss.pairs, strict=True):
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        rows = log_softmax(array(outputs, Pooled()) @ weight.T + bias)
        for row, ids, probabilities in zip(rows, array(outputs, labels), array(outputs, shares), strict=True):
            kept = ids >= 0
            if kept.any():
                total -= (probabilities[kept] / probabilities[kept].sum() * row[ids[kept]]).sum()
    assert loss(outputs)["concept_distillation"].item() == pytest.approx(total / 6, rel=1e-5)


def test_samples_without_concepts_add_nothing() -> None:
    objective = make_objective({"concept_distillation": {"ids": ["ids"], "probabilities": ["shares"]}})
    loss = objective.losses["concept_distillation"]
    outputs = make_outputs(loss.needs, 4, changed={loss.pairs[0][0]: torch.full((4, 3), -1)})
    assert loss(outputs)["concept_distillation"].item() == 0.0


def test_columns_come_in_pairs() -> None:
    with pytest.raises(InputError, match="belong together in pairs"):
        ConceptDistillation(ids=("a", "b"), probabilities=("c",))
    assert np.all([request.kind in {"labels", "numbers"} for request in ConceptDistillation().needs[1:]])
