"""Ray, and the only Ray code in `curate/`: runs functions over units of work, survives lost workers, reports progress.

Locally it starts Ray on this machine; with an address it joins a cluster. Both run the same code.
"""

import logging
from dataclasses import dataclass
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Unit, Result]):
    """What became of a unit: a result, or the error that remained after every retry."""

    unit: Unit
    result: Result | None
    error: str | None
