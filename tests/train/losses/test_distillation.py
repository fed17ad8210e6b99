import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, clip_reference, log_softmax, make_objective, make_outputs
from train.losses.distillation import StoredDistillation
from train.request import Present, Text, View


def teach(rows: np.ndarray, columns: np.ndarray, num_teachers: int) -> np.ndarray:
    found = []
    for own, every in zip(np.split(rows, num_teachers, 1), np.split(columns, num_teachers, 1), strict=True):
        own, every = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in (own, every))
        found.append(np.exp(log_softmax(100 * own @ every.T)))
    return np.mean(found, axis=0)


def reference(images: np.ndarray, texts: np.ndarray, image_teacher: np.ndarray, text_teacher: np.ndarray) -> float:
    logits = 7.0 * images @ texts.T
    directions = [
        (teach(image_teacher, text_teacher, 2) * log_softmax(logits)).sum(1).mean(),
        (teach(text_teacher, image_teacher, 2) * log_softmax(logits.T)).sum(1).mean(),
    ]
    return -float(np.mean(directions))


def test_reference_with_two_teachers_and_two_captions() -> None:
    loss = StoredDistillation(
        caption="alt_text", second_caption="recaption", second_text="second", num_teachers=2, clip=0.25, distill=0.75
    )
    outputs = make_outputs(loss.needs, 7)
    (first, first_column), (second, second_column) = loss.pairs
    images, image_teacher = array(outputs, View()), array(outputs, loss.image)
    there = array(outputs, Present(second))
    assert 0 < there.sum() < 7
    expected = reference(images, array(outputs, first), image_teacher, array(outputs, first_column))
    # Only samples with a second caption are compared by it, and they are the batch; the mean is over all samples.
    second_loss = reference(
        images[there], array(outputs, second)[there], image_teacher[there], array(outputs, second_column)[there]
    )
    terms = loss(outputs)
    assert terms["distillation"].item() == pytest.approx(0.75 * (expected + second_loss * there.mean()), rel=1e-4)
    clip = clip_reference(7.0 * images @ array(outputs, first).T)
    assert terms["distillation_clip"].item() > 0.25 * clip


def test_a_certain_teacher_is_info_nce() -> None:
    loss = StoredDistillation()
    same = 10 * torch.eye(8)
    outputs = make_outputs(loss.needs, 8, changed={loss.image: same, loss.pairs[0][1]: same})
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, Text()).T)
    assert loss(outputs)["distillation"].item() == pytest.approx(expected, rel=1e-5)


def test_wrong_widths_and_halves_are_refused() -> None:
    with pytest.raises(InputError, match="second_caption and second_text belong together"):
        StoredDistillation(second_caption="recaption")
    with pytest.raises(InputError, match=r"a multiple of num_teachers 3, got \{'teacher_image_embedding': 8"):
        make_objective({"distillation": {"num_teachers": 3}})
