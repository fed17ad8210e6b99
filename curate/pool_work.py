"""What a pool-wide operator works with besides its rows: scratch space, a memory budget, and workers."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from schemas.errors import WinnowError

if TYPE_CHECKING:
    from curate.executor import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")

_MEMORY_SHARE = 4
# What starting Ray and the first imports of its workers take, with what a second core would save of it.
_START_SECONDS = 8.0
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class PoolWork:
    """Scratch space, a memory budget, and a map over the executor's workers.

    scratch = work.folder / "bands.parquet"              # on this machine's disk, removed when the operator ends
    parts = work.map(find_pairs, bands)                  # find_pairs(band) for every band, on Ray, results in order
    """

    def __init__(self, folder: Path, executor: "Executor | None" = None, memory_bytes: int = 0) -> None:
        """Without an executor `map` runs in this process; `memory_bytes` of 0 means a quarter of the machine's."""
        self.folder = folder
        self.memory_bytes = memory_bytes or machine_memory() // _MEMORY_SHARE
        self._executor = executor

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, core_seconds: float = math.inf
    ) -> Iterator[Result]:
        """Yield `function(item)` in the order of `items`, which are pulled as workers become free.

        A lone item is computed in this process, which costs no Ray; so are all of them where no worker is up yet and `core_seconds`, about
        what they cost one core together, is less than a start of Ray takes. `function` must be repeatable: a worker that dies is replaced, and
        its item computed again. Raises what `function` raised.
        """
        upcoming = iter(items)
        first = list(islice(upcoming, 2))
        is_small = core_seconds < _START_SECONDS and not (self._executor and self._executor.has_started)
        if self._executor is None or len(first) < 2 or is_small:
            yield from map(function, chain(first, upcoming))
            return
        finished: dict[int, Result] = {}
        due = 0
        numbered = (_Numbered(number, item) for number, item in enumerate(chain(first, upcoming)))
        for outcome in self._executor.map(functools.partial(_call, function), numbered):
            if outcome.result is None:
                raise outcome.cause or WinnowError(f"a worker of a pool-wide operator failed: {outcome.error}")
            number, result = outcome.result
            finished[number] = result
            while due in finished:
                yield finished.pop(due)
                due += 1


@dataclass(frozen=True, repr=False)
class _Numbered(Generic[Item]):
    """An item and its place; what is logged of it is the place, for items may be millions of numbers."""

    number: int
    item: Item

    def __repr__(self) -> str:
        return f"item {self.number}"


def _call(function: Callable[[Item], Result], numbered: _Numbered[Item]) -> tuple[int, Result]:
    return numbered.number, function(numbered.item)


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total
