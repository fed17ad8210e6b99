"""What users may catch."""

import pytest

from schemas.errors import (
    ContractError,
    InputError,
    MissingColumnsError,
    RecipeError,
    ShardError,
    StaleDatasetError,
    WinnowError,
)
from schemas.progress import Progress, SilentProgress


@pytest.mark.parametrize("kind", [InputError, RecipeError, MissingColumnsError, ContractError, StaleDatasetError])
def test_one_base_catches_all(kind: type[WinnowError]) -> None:
    with pytest.raises(WinnowError, match="what to do"):
        raise kind("what to do")


def test_mistakes_in_values_are_value_errors() -> None:
    assert issubclass(MissingColumnsError, InputError)
    assert issubclass(InputError, ValueError)
    assert not issubclass(ContractError, ValueError)


def test_failed_shards_are_listed() -> None:
    error = ShardError("2 shards failed", {"00001": "OSError: x"})
    assert isinstance(error, WinnowError)
    assert error.failures == {"00001": "OSError: x"}


def test_silence_is_a_progress() -> None:
    progress: Progress = SilentProgress()
    progress.start("annotate", None, "samples")
    progress.advance(3, errors="0")
    progress.close()
