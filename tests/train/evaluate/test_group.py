import numpy as np
import pytest
import torch

from train.evaluate.group import split_by_group
from train.evaluate.retrieval import UniqueTexts, measure_retrieval
from train.evaluate.task import Groups
from train.evaluate.zeroshot import measure_zeroshot


def test_each_group_has_its_share_and_the_worst_is_named() -> None:
    hits = np.array([True, False, True, True, False])
    metrics = split_by_group("source", ["web", "web", "stock", "", ""], {"acc1": hits, "acc5": ~hits})
    assert metrics == {
        "acc1[source=stock]": 1.0,
        "acc1[source=web]": 0.5,
        "worst_source_acc1": 0.5,
        "acc5[source=stock]": 0.0,
        "acc5[source=web]": 0.5,
        "worst_source_acc5": 0.0,
    }
    assert split_by_group("source", ["", ""], {"acc1": hits[:2]}) == {}


def test_zeroshot_by_group() -> None:
    images = torch.eye(3)[[0, 1, 1, 2]]
    groups = [Groups(name="region", values=["a", "a", "b", "b"])]
    metrics = measure_zeroshot(images, torch.eye(3), np.array([0, 1, 2, 2]), groups)
    assert metrics["acc1[region=a]"] == 1.0
    assert metrics["worst_region_acc1"] == metrics["acc1[region=b]"] == 0.5
    # Class 0: F1 1; class 1: one right, one wrong guess, 2/3; class 2: one found of two, 2/3.
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_retrieval_by_group_counts_a_shared_text_in_both() -> None:
    images = torch.eye(3)
    texts = UniqueTexts.of([["one", "both"], ["both"], ["three"]])
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0.1, 1, 0], [1, 0, 0.5]]), dim=1)
    groups = [Groups(name="source", values=["a", "b", "b"])]
    metrics = measure_retrieval(images, features, texts, groups)
    assert metrics["text_to_image_recall@1[source=a]"] == 1.0
    assert metrics["text_to_image_recall@1[source=b]"] == 0.5
    assert metrics["worst_source_text_to_image_recall@1"] == 0.5
    assert metrics["worst_source_image_to_text_recall@1"] == 1.0
