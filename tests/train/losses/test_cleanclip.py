import pytest

from tests.train.losses.outputs import array, clip_reference, make_outputs
from train.losses.cleanclip import CleanCLIP


def test_reference() -> None:
    loss = CleanCLIP()
    outputs = make_outputs(loss.needs, 7)
    expected = sum(clip_reference(7.0 * array(outputs, one) @ array(outputs, other).T) for one, other in loss.pairs) / 2
    assert loss(outputs)["cleanclip"].item() == pytest.approx(expected, rel=1e-5)
    assert [request.key for pair in loss.pairs for request in pair] == [
        "view_0",
        "view_1",
        "text_1",
        "text_augmented_1",
    ]
