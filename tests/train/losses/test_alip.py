import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, assert_gradient, clip_reference, log_softmax, make_outputs, slopes
from train.contrast import pair_losses
from train.losses.alip import ALIP
from train.request import Present, Text, View

S_TC, S_XT, S_XC = (torch.tensor(values) for values in ([0.9, 0.5, 0.2], [0.3, 0.2, 0.1], [0.4, 0.35, 0.3]))


def check(gates: tuple[torch.Tensor, ...], *expected: list[float]) -> None:
    for found, values in zip(gates, expected, strict=True):
        np.testing.assert_allclose(found.numpy(), values, atol=1e-6)


def test_golden_gates_of_the_first_step() -> None:
    loss = ALIP()
    loss._follow(S_TC, S_XT, S_XC)
    assert loss.h_tc.item() == pytest.approx(0.995333, abs=1e-6)
    check(
        loss.gates(S_TC, S_XT, S_XC),
        [0.826408, 0.371329, 0.203790],
        [0.250574, 0.205153, 0.167965],
        [0.305135, 0.276098, 0.249824],
    )


def test_golden_gates_where_the_means_have_settled() -> None:
    loss = ALIP()
    for mean, value in ((loss.h_tc, 0.5), (loss.h_xt, 0.2), (loss.h_xc, 0.35)):
        mean.fill_(value)
    check(loss.gates(S_TC, S_XT, S_XC), [1, 1, 0.548812], [1, 1, 0.818731], [1, 1, 0.904837])


def test_reference() -> None:
    loss = ALIP()
    outputs = make_outputs(loss.needs, 7, changed={Present(loss.caption): torch.ones(7, dtype=torch.bool)})
    images, texts, captions = (array(outputs, request) for request in (View(), Text(), loss.caption))
    s_tc, s_xt, s_xc = ((one * other).sum(1) for one, other in ((texts, captions), (images, texts), (images, captions)))
    h_tc, h_xt, h_xc = (0.99 + 0.01 * values.mean() for values in (s_tc, s_xt, s_xc))
    raw = np.exp(2 * (s_tc - h_tc))
    w_s = np.minimum(raw, 1)
    expected = 0.0
    for words, s, h in ((texts, s_xt, h_xt), (captions, s_xc, h_xc)):
        logits = 7.0 * images @ words.T
        losses = -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))) / 2
        expected += (w_s * np.where(raw < 1, np.exp(2 * (s - h)), 1) * losses).mean()
    assert sum(loss(outputs).values()).item() == pytest.approx(expected, rel=1e-5)
    assert loss.h_xc.item() == pytest.approx(h_xc, rel=1e-6)


def settled(**options: float) -> tuple[ALIP, object]:
    """Return a loss whose running means have come down to where batches of random numbers have some samples on either side."""
    loss = ALIP(**options)
    for mean in (loss.h_tc, loss.h_xt, loss.h_xc):
        mean.fill_(0.0)
    return loss, make_outputs(loss.needs, 7, changed={Present(loss.caption): torch.ones(7, dtype=torch.bool)})


def sample_losses(images: np.ndarray, words: np.ndarray) -> np.ndarray:
    logits = 7.0 * images @ words.T
    return -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))) / 2


def test_gates_have_no_gradient() -> None:
    loss, outputs = settled()
    images, texts, captions = (array(outputs, request) for request in (View(), Text(), loss.caption))
    sum(loss(outputs).values()).backward()
    # The gates as they were, after the means have moved: weights of a sum, and nothing else.
    s_tc, s_xt, s_xc = ((one * other).sum(1) for one, other in ((texts, captions), (images, texts), (images, captions)))
    h_tc, h_xt, h_xc = (0.01 * values.mean() for values in (s_tc, s_xt, s_xc))
    raw = np.exp(2 * (s_tc - h_tc))
    assert 0 < (raw < 1).sum() < 7
    text_weights = np.minimum(raw, 1) * np.where(raw < 1, np.exp(2 * (s_xt - h_xt)), 1)
    caption_weights = np.minimum(raw, 1) * np.where(raw < 1, np.exp(2 * (s_xc - h_xc)), 1)

    def value(images: np.ndarray, texts: np.ndarray, captions: np.ndarray) -> float:
        parts = text_weights * sample_losses(images, texts) + caption_weights * sample_losses(images, captions)
        return float(parts.mean())

    assert_gradient(outputs[View()].grad, slopes(lambda rows: value(rows, texts, captions), images))
    assert_gradient(outputs[Text()].grad, slopes(lambda rows: value(images, rows, captions), texts))
    assert_gradient(outputs[loss.caption].grad, slopes(lambda rows: value(images, texts, rows), captions))


@pytest.mark.parametrize(("gamma", "mean"), [(0.0, 1.0), (2.0, -1.0)])
def test_full_weights_are_two_info_nces(gamma: float, mean: float) -> None:
    # No slope, or means below every cosine that there can be.
    loss, outputs = settled(gamma=gamma, momentum=1.0)
    for value in (loss.h_tc, loss.h_xt, loss.h_xc):
        value.fill_(mean)
    images, texts, captions = (array(outputs, request) for request in (View(), Text(), loss.caption))
    terms = loss(outputs)
    assert terms["alip_text"].item() == pytest.approx(clip_reference(7.0 * images @ texts.T), rel=1e-5)
    assert terms["alip_caption"].item() == pytest.approx(clip_reference(7.0 * images @ captions.T), rel=1e-5)


def test_a_text_that_fits_neither_picture_nor_caption_counts_less() -> None:
    loss = ALIP(momentum=0.5)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 8))
    captions = images + 0.3 * rng.normal(size=(8, 8))
    texts = images + 0.3 * rng.normal(size=(8, 8))
    texts[3] = images[4]  # another picture's
    sides = {View(): images, loss.caption: captions, Text(): texts}
    changed = {
        request: torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)
        for request, rows in sides.items()
    }
    outputs = make_outputs(loss.needs, 8, changed={**changed, Present(loss.caption): torch.ones(8, dtype=torch.bool)})
    for _ in range(20):
        loss(outputs)  # the means settle
    image, text, caption = (outputs[request].detach() for request in (View(), Text(), loss.caption))
    w_s, w_t, w_c = loss.gates((text * caption).sum(1), (image * text).sum(1), (image * caption).sum(1))
    others = torch.arange(8) != 3
    assert w_s[3] < 0.5 * w_s[others].min()
    assert (w_s * w_t)[3] < 0.25 * (w_s * w_t)[others].min()
    assert (w_s * w_c)[3] < 0.5 * (w_s * w_c)[others].min()
    # And so it hardly pulls: its share of the loss is what the gates leave of it.
    full = ALIP(gamma=0.0)(outputs)["alip_text"] - loss(outputs)["alip_text"]
    own = pair_losses(outputs)[3] * (1 - (w_s * w_t)[3]) / 8
    assert own > 0.5 * full


def test_without_captions_it_is_info_nce() -> None:
    loss = ALIP()
    outputs = make_outputs(loss.needs, 7, changed={Present(loss.caption): torch.zeros(7, dtype=torch.bool)})
    terms = loss(outputs)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    assert terms["alip_text"].item() == pytest.approx(clip_reference(logits), rel=1e-5)
    assert terms["alip_caption"].item() == 0.0
    assert loss.h_tc.item() == 1.0
