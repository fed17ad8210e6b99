"""How long work reports itself, so that libraries neither print nor know about terminals."""

from typing import Protocol


class Progress(Protocol):
    """Receives the advance of one stage at a time."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin a stage of `total` units ("samples", "steps"); None where the total is not known."""

    def advance(self, amount: int, **fields: str) -> None:
        """Add `amount` units; `fields` are shown as they are beside the bar (`success="97.1%"`), the rate is computed."""

    def close(self) -> None:
        """End the stage, whether or not it was finished."""


class SilentProgress:
    """Reports nothing: the default of library calls and tests."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Ignore the start."""

    def advance(self, amount: int, **fields: str) -> None:
        """Ignore the advance."""

    def close(self) -> None:
        """Ignore the end."""
