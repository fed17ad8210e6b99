import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import (
    SCALE,
    array,
    assert_gradient,
    clip_reference,
    log_softmax,
    make_outputs,
    pair_outputs,
    slopes,
)
from train.losses import macl
from train.losses.info_nce import InfoNCE
from train.losses.macl import MACL, _reweigh
from train.request import Text, View

SIDES = (View(), Text())


def close_pairs(count: int = 6):
    """Return outputs whose pairs are closer than chance, so that alignment counts."""
    images = make_outputs(SIDES, count)[View()].detach()
    noise = make_outputs(SIDES, count)[Text()].detach()
    texts = torch.nn.functional.normalize(images + 0.8 * noise, dim=1)
    return make_outputs(SIDES, count, changed={Text(): texts})


def reference(cosines: np.ndarray, temperature: float, weights: tuple[np.ndarray, np.ndarray] | None) -> float:
    """Return the loss at this temperature; rows of both directions count as the weights say."""
    total = 0.0
    for number, matrix in enumerate((cosines, cosines.T)):
        losses = -np.diag(log_softmax(matrix / temperature))
        total += (losses if weights is None else losses * weights[number]).mean() / 2
    return float(total)


def weights_of(cosines: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    return tuple(1 / (1 - np.exp(np.diag(log_softmax(matrix / temperature)))) for matrix in (cosines, cosines.T))


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize(("slope", "start"), [(1.0, 0.0), (0.5, 0.2), (0.0, 0.0)])
def test_reference_and_gradients(slope: float, start: float, reweight: bool) -> None:
    """What the temperature and the weights are made of is held fast where the reference moves."""
    outputs = close_pairs()
    images, texts = (array(outputs, side) for side in SIDES)
    cosines = images @ texts.T
    alignment = np.diag(cosines).mean()
    assert 0.4 < alignment < 0.95
    temperature = 0.1 * (1 + slope * (alignment - start))
    weights = weights_of(cosines, temperature) if reweight else None
    found = MACL(slope=slope, start=start, reweight=reweight)(outputs)["macl"]
    assert found.item() == pytest.approx(reference(cosines, temperature, weights), rel=1e-5)
    found.backward()
    assert_gradient(outputs[View()].grad, slopes(lambda rows: reference(rows @ texts.T, temperature, weights), images))
    assert_gradient(outputs[Text()].grad, slopes(lambda rows: reference(images @ rows.T, temperature, weights), texts))


def test_slope_zero_is_the_fixed_temperature() -> None:
    outputs = close_pairs()
    logits = array(outputs, View()) @ array(outputs, Text()).T / 0.07
    found = MACL(temperature=0.07, slope=0.0, reweight=False)(outputs)["macl"]
    assert found.item() == pytest.approx(clip_reference(logits), rel=1e-5)


def test_slope_zero_at_the_learned_scale_is_info_nce() -> None:
    found, expected = close_pairs(), close_pairs()
    mine = MACL(temperature=0.0, slope=0.0, reweight=False)(found)["macl"]
    theirs = InfoNCE()(expected)["info_nce"]
    torch.testing.assert_close(mine, theirs)
    mine.backward()
    theirs.backward()
    for side in SIDES:
        torch.testing.assert_close(found[side].grad, expected[side].grad)
    torch.testing.assert_close(found.logit_scale.grad, expected.logit_scale.grad)


def test_the_learned_scale_is_divided_by_the_same_factor() -> None:
    outputs = close_pairs()
    cosines = array(outputs, View()) @ array(outputs, Text()).T
    temperature = (1 + 0.5 * np.diag(cosines).mean()) / SCALE
    found = MACL(temperature=0.0, slope=0.5)(outputs)["macl"]
    assert found.item() == pytest.approx(reference(cosines, temperature, weights_of(cosines, temperature)), rel=1e-5)


def test_alignment_has_no_gradient() -> None:
    """The same gradients as at the fixed temperature that it came to."""
    found, expected = close_pairs(), close_pairs()
    alignment = (found[View()] * found[Text()]).sum(1).mean().item()
    MACL(temperature=0.1, slope=1.0)(found)["macl"].backward()
    MACL(temperature=0.1 * (1 + alignment), slope=0.0)(expected)["macl"].backward()
    for side in SIDES:
        torch.testing.assert_close(found[side].grad, expected[side].grad)


def test_pairs_that_point_away_leave_a_temperature() -> None:
    outputs = pair_outputs(-np.eye(4))
    found = MACL(slope=1.0, reweight=False)(outputs)["macl"]
    assert found.item() == pytest.approx(clip_reference(-np.eye(4) / (0.1 * 0.01)), rel=1e-5)


def test_weights_at_both_ends() -> None:
    """A match that is certain counts as 1 with a derivative that does not fade; one that is lost as its lead."""
    lead = torch.tensor([-200.0, -20.0, -6.9, -1.0, 0.0, 5.0, 200.0], requires_grad=True)
    found = _reweigh(lead)
    exact = lead.detach().double()[2:6]
    expected = torch.nn.functional.softplus(exact) / exact.sigmoid()
    torch.testing.assert_close(found.detach()[2:6].double(), expected, rtol=1e-6, atol=0)
    assert found.tolist()[:2] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert found[-1].item() == pytest.approx(200.0)
    found.sum().backward()
    torch.testing.assert_close(lead.grad, torch.ones(7))


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_are_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (1024, chunk):
        monkeypatch.setattr(macl, "_CHUNK", size)
        outputs = close_pairs()
        value = MACL(temperature=0.0)(outputs)["macl"]
        value.backward()
        results.append((value, *(outputs[side].grad for side in SIDES), outputs.logit_scale.grad))
    torch.testing.assert_close(results[1], results[0])


def test_a_batch_of_one_has_nothing_to_tell_apart() -> None:
    outputs = make_outputs(SIDES, 1)
    found = MACL()(outputs)["macl"]
    found.backward()
    assert found.item() == 0
    assert not outputs[View()].grad.any()


def test_wrong_options_are_refused() -> None:
    for options in ({"temperature": -0.1}, {"slope": -1.0}, {"start": 1.5}):
        with pytest.raises(InputError, match="temperature and slope are 0 or more and start is from -1 to 1, got"):
            MACL(**options)
