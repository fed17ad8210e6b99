import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import (
    array,
    assert_gradient,
    clip_reference,
    log_softmax,
    make_objective,
    make_outputs,
    slopes,
)
from train.losses.dreamlip import DreamLIP, group_patches
from train.request import Patches, Present, Text, View

COUNT = 3


def build(**options: object):
    loss = make_objective({"dreamlip": {"count": COUNT, **options}}).losses["dreamlip"]
    return loss, make_outputs(loss.needs, 5)


def parts(loss, outputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return array(outputs, View()), array(outputs, loss.texts), array(outputs, Present(loss.texts))


def test_circle_reference() -> None:
    loss, outputs = build()
    images, texts, there = parts(loss, outputs)
    assert not there.all()
    losses = []
    for i in range(5):
        positive, negative = 0.0, 0.0
        for j in range(5):
            for k in range(COUNT):
                cosine = images[i] @ texts[j, k]
                if there[j, k] and i == j:
                    positive += np.exp(-32 * max(0, 1.25 - cosine) * (cosine - 0.75))
                elif there[j, k]:
                    negative += np.exp(32 * max(0, cosine + 0.25) * (cosine - 0.25))
        if there[i].any():
            losses.append(np.log1p(positive * negative) / 10)
    terms = loss(outputs)
    assert terms["dreamlip_positives"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    expected = clip_reference(7.0 * images @ array(outputs, Text()).T) / (COUNT + 1)
    assert terms["dreamlip_text"].item() == pytest.approx(expected, rel=1e-5)


def test_the_pulls_of_the_circle_have_no_gradient() -> None:
    loss, outputs = build(gamma=4.0)
    images, texts, there = parts(loss, outputs)
    cosines = np.einsum("id,jkd->ijk", images, texts)
    pulls, pushes = np.maximum(0, 1.25 - cosines), np.maximum(0, cosines + 0.25)  # as they are, whatever moves

    def value(rows: np.ndarray) -> float:
        losses = []
        for i in np.flatnonzero(there.any(1)):
            moved = np.einsum("d,jkd->jk", rows[i], texts)
            own = np.arange(5)[:, None] == i
            positive = np.exp(-4 * pulls[i] * (moved - 0.75))[own & there].sum()
            negative = np.exp(4 * pushes[i] * (moved - 0.25))[~own & there].sum()
            losses.append(np.log1p(positive * negative) / 10)
        return float(np.mean(losses))

    found = loss(outputs)["dreamlip_positives"]
    assert found.item() == pytest.approx(value(images), rel=1e-4)
    found.backward()
    assert_gradient(outputs[View()].grad, slopes(value, images))


def test_info_nce_reference() -> None:
    loss, outputs = build(positives="info_nce")
    images, texts, there = parts(loss, outputs)
    losses = []
    for i in range(5):
        others = [texts[j, k] for j in range(5) for k in range(COUNT) if j != i and there[j, k]]
        for k in range(COUNT):
            if there[i, k]:
                to_texts = 7.0 * np.array([images[i] @ texts[i, k], *(images[i] @ text for text in others)])
                to_images = 7.0 * images @ texts[i, k]
                losses.append(-(log_softmax(to_texts)[0] + log_softmax(to_images)[i]) / 2)
    assert loss(outputs)["dreamlip_positives"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_grouping_reference() -> None:
    loss, outputs = build(least=0.3, grouping=2.0)
    _, texts, there = parts(loss, outputs)
    patches = (
        array(outputs, Patches()) @ loss.patch_map.weight.detach().numpy().T + loss.patch_map.bias.detach().numpy()
    )
    patches /= np.linalg.norm(patches, axis=-1, keepdims=True)
    groups, words = [], []
    for i, k in np.argwhere(there):
        similarity = patches[i] @ texts[i, k]
        weights = (similarity - similarity.min()) / (similarity.max() - similarity.min())
        weights[weights < 0.3] = 0
        group = (weights / weights.sum()) @ patches[i]
        groups.append(group / np.linalg.norm(group))
        words.append(texts[i, k])
    expected = clip_reference(7.0 * np.array(groups) @ np.array(words).T)
    assert loss(outputs)["dreamlip_grouping"].item() == pytest.approx(2 * expected, rel=1e-4)


def test_one_sub_caption_of_each_image_is_info_nce() -> None:
    loss, _ = build(positives="info_nce")
    only_first = torch.zeros(5, COUNT, dtype=torch.bool)
    only_first[:, 0] = True
    outputs = make_outputs(loss.needs, 5, changed={Present(loss.texts): only_first})
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, loss.texts)[:, 0].T)
    assert loss(outputs)["dreamlip_positives"].item() == pytest.approx(expected, rel=1e-5)


def test_a_negative_cut_is_the_even_share() -> None:
    patches, texts = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1), torch.randn(2, 1, 8)
    torch.testing.assert_close(group_patches(patches, texts, -1.0), group_patches(patches, texts, 0.25))


def test_no_grouping_asks_for_no_patches() -> None:
    assert not any(isinstance(request, Patches) for request in DreamLIP(grouping=0.0).needs)
    with pytest.raises(InputError, match="count must be at least 2, got 1"):
        DreamLIP(count=1)
    with pytest.raises(InputError, match="positives is circle or info_nce, got 'triplet'"):
        DreamLIP(positives="triplet")
