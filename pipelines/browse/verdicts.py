"""What a selection did with every row, by position: read from its ledger, which is what happened."""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.catalog import Catalog
from curate.fingerprint import pool_digest
from pipelines.browse.evaluator import Mask
from schemas.errors import InputError
from schemas.selection import LEDGER_FILE, SELECTION_FILE

KEPT, DROPPED = "kept", "dropped"
_RULE = "rule:"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule, or a cut, of a selection."""

    name: str
    sql: str


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The rules of a selection in order, and for every row 0 where it was kept, else one more than the number of the first rule it fails."""

    folder: str
    rules: tuple[Rule, ...]
    codes: npt.NDArray[np.uint8]

    def where(self, outcome: str) -> Mask:
        """Return the rows that were "kept", "dropped" or first failed "rule:<name>"; raises InputError for anything else."""
        if outcome == KEPT:
            return np.equal(self.codes, 0)
        if outcome == DROPPED:
            return np.not_equal(self.codes, 0)
        names = [rule.name for rule in self.rules]
        name = outcome.removeprefix(_RULE)
        if not outcome.startswith(_RULE) or name not in names:
            raise InputError(
                f"outcome {outcome[:200]!r} is not kept, dropped or rule:NAME; the rules are {', '.join(names)}"
            )
        return np.equal(self.codes, names.index(name) + 1)

    def outcome(self, position: int) -> str:
        """Return "kept", or "rule:<name>" with the rule that dropped a row."""
        code = int(self.codes[position])
        return f"{_RULE}{self.rules[code - 1].name}" if code else KEPT

    def count(self, mask: Mask) -> dict[str, int]:
        """Return how many of the rows of a mask have each outcome."""
        counts = np.bincount(self.codes[mask], minlength=len(self.rules) + 1).tolist()
        by_rule = {f"{_RULE}{rule.name}": count for rule, count in zip(self.rules, counts[1:], strict=True)}
        return {KEPT: counts[0], DROPPED: sum(counts[1:]), **by_rule}


def read_verdicts(catalog: Catalog, folder: str) -> Verdicts:
    """Read a selection's ledger; raises InputError where the pool is not the one that it was made of any more."""
    pool = catalog.pool
    content = json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}"))
    digest = pool_digest({header.shard: header.shard_digest for header in catalog.shards})
    if content["pool_digest"] != digest:
        raise InputError(
            f"the pool has changed since {folder} was made, so its ledger is about other rows; run `winnow select` again"
        )
    rules = tuple(Rule(name=row["rule"], sql=row["sql"]) for row in content["funnel"])
    with pool.open(f"{folder}/{LEDGER_FILE}") as file:
        table = pq.read_table(file, columns=["first_failing_rule"])
    names = pa.array([rule.name for rule in rules], pa.string())
    places = pc.index_in(table["first_failing_rule"].cast(pa.string()), value_set=names, skip_nulls=True)
    codes = (pc.fill_null(places, -1).to_numpy() + 1).astype(np.uint8)
    return Verdicts(folder=folder, rules=rules, codes=codes)
