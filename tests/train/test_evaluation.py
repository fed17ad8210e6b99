import pytest

from schemas.errors import InputError
from train.evaluation import EvaluationOptions


def test_wrong_options_are_named() -> None:
    with pytest.raises(
        InputError, match="a backdoor has a trigger and a target class, got trigger 'patch' and target ''"
    ):
        EvaluationOptions(trigger="patch")
    with pytest.raises(InputError, match="unknown trigger 'pitch'; known: patch, yellow, corners, blended, wave, warp"):
        EvaluationOptions(trigger="pitch", target="banana")
    with pytest.raises(InputError, match="unknown trigger_place 'middle'; known: corner, random"):
        EvaluationOptions(trigger="patch", target="banana", trigger_place="middle")
    with pytest.raises(InputError, match=r"shots and num_seeds must be at least 1, got \[0\] and 3"):
        EvaluationOptions(shots=(0,))


def test_training_images_are_needed_to_fit_something() -> None:
    assert not EvaluationOptions().needs_training_images
    assert EvaluationOptions(probe=True).needs_training_images
    assert EvaluationOptions(shots=(1,)).needs_training_images
