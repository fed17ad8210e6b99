"""What annotation costs: seconds per row of each operator, as earlier runs over this pool noted, else as a benchmark measured.

The notes are lines of JSON in `logs/annotate.jsonl` of a local pool, no part of any annotation or fingerprint. They say what each operator of
a pass took; the rest of the pass is reading, decoding and writing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from curate.plan import Planned
from curate.store import Pool

LOG_FILE = "logs/annotate.jsonl"
_COSTS_FILE = "operator_costs.json"
MEASURED, SIMILAR, BENCHMARK, UNKNOWN = "this pool", "this pool, other parameters", "benchmark", "not measured"


@dataclass(frozen=True)
class Rate:
    """Worker seconds per row, and where that is known from; None where it is not."""

    seconds: float | None
    source: str


class Rates:
    """The rates known for a pool, from its notes and the shipped costs."""

    def __init__(self, pool: Pool) -> None:
        self._by_fingerprint: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._by_name: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._passes: defaultdict[bool, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for entry in _read_log(pool):
            if "operator_seconds" in entry:  # older notes do not say what each operator took
                self._add(entry)

    def of(self, planned: Planned) -> Rate:
        """Return what an operator costs per row: itself here, else with other parameters here, else by the benchmark."""
        measured = self._by_fingerprint.get(planned.fingerprint[:12])
        if measured and measured[1]:
            return Rate(measured[0] / measured[1], MEASURED)
        measured = self._by_name.get(planned.operator.name)
        if measured and measured[1]:
            return Rate(measured[0] / measured[1], SIMILAR)
        per_million = _shipped_costs()["operators"].get(planned.operator.name)
        return Rate(None, UNKNOWN) if per_million is None else Rate(per_million / 1e6, BENCHMARK)

    def of_pass(self, *, reads_pictures: bool) -> Rate:
        """Return what reading, decoding where pictures are wanted, and writing cost per row of a pass."""
        measured = self._passes.get(reads_pictures)
        if measured and measured[1]:
            return Rate(measured[0] / measured[1], MEASURED)
        return Rate(_shipped_costs()["decode"] / 1e6 if reads_pictures else 0.0, BENCHMARK)

    def _add(self, entry: Mapping[str, Any]) -> None:
        rows, seconds = entry["rows"], entry["operator_seconds"]
        for fingerprint, name, own in zip(entry["fingerprints"], entry["names"], seconds, strict=True):
            for known in (self._by_fingerprint[fingerprint], self._by_name[name]):
                known[0] += own
                known[1] += rows
        if entry["shard"] is not None:
            known = self._passes[entry["reads_pictures"]]
            known[0] += max(0.0, entry["seconds"] - sum(seconds))
            known[1] += rows


def sum_known(rates: Sequence[Rate]) -> float:
    """Return the sum of the rates that are known, in seconds per row."""
    return sum(rate.seconds or 0.0 for rate in rates)


def sum_costs(pool: Pool) -> tuple[Counter[str], Counter[str]]:
    """Return the worker seconds spent on each annotation, and the rows they went into, by the first 12 characters of its fingerprint.

    A pass over several operators counts for each in equal parts.
    """
    seconds: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for entry in _read_log(pool):
        for fingerprint in entry["fingerprints"]:
            seconds[fingerprint] += entry["seconds"] / len(entry["fingerprints"])
            rows[fingerprint] += entry["rows"]
    return seconds, rows


def _read_log(pool: Pool) -> Iterator[Mapping[str, Any]]:
    """Yield the notes in the order they were written."""
    if not pool.exists(LOG_FILE):
        return
    for line in pool.read_bytes(LOG_FILE).decode().splitlines():
        try:
            entry: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut off; notes on cost are not worth an error
        yield entry


@cache
def _shipped_costs() -> Mapping[str, Any]:
    """Return CPU seconds per million rows: of one decode, and of every operator that `python -m benchmarks operators` measured."""
    content: Mapping[str, Any] = json.loads(resources.files("curate").joinpath(_COSTS_FILE).read_text())
    return content
