"""What people decided by eye, as a column."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from curate.fingerprint import canonical_json
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError

# What may be decided about a sample.
DECISIONS = ("keep", "drop", "flag")
DECISIONS_SCHEMA = pa.schema([("uid", pa.string()), ("decision", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Manual(ShardOperator):
    """Decisions taken by hand in `winnow browse`; a lookup by uid, under a microsecond per sample.

    decision   "keep", "drop" or "flag"; null where nobody decided

    `decisions` is the Parquet file that `winnow browse` keeps at manual/decisions.parquet in the pool. It writes this annotation by
    itself after every change; annotate again with that file after a pool has grown. In SQL: `manual.decision = 'keep'`, and to drop what
    was dropped and keep what nobody looked at, `manual.decision IS DISTINCT FROM 'drop'`.
    """

    name = "manual"
    version = 1
    reads = ("uid",)
    writes = pa.schema([("decision", pa.string())])

    decisions: str  # Parquet file with uid and decision

    def __post_init__(self) -> None:
        if "://" not in self.decisions:
            object.__setattr__(self, "decisions", str(Path(self.decisions).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the digest of the decisions: where the file lies does not matter, nor the order in which they were taken."""
        decided = canonical_json(read_decisions(self.decisions))
        return {"decisions": hashlib.sha256(decided.encode()).hexdigest()}

    def load(self) -> Annotate:
        decisions = read_decisions(self.decisions)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            return {"decision": [decisions.get(uid) for uid in batch.column("uid").to_pylist()]}

        return annotate


def read_decisions(path: str) -> dict[str, str]:
    """Read the decisions by uid; raises InputError where the file is none of that kind."""
    try:
        with fsspec.open(path, "rb") as file:
            table = pq.read_table(file)
    except FileNotFoundError as error:
        raise InputError(f"no decisions in {path}; `winnow browse` writes that file with the first decision") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file of decisions: {error}") from error
    if not set(DECISIONS_SCHEMA.names) <= set(table.column_names):
        raise InputError(f"{path} has the columns {', '.join(table.column_names)}; decisions are uid and decision")
    found = dict(zip(table["uid"].to_pylist(), table["decision"].to_pylist(), strict=True))
    wrong = next(((uid, decision) for uid, decision in found.items() if decision not in DECISIONS), None)
    if wrong:
        raise InputError(f"{path} decides {wrong[1]!r} about {wrong[0]}; it must be one of {', '.join(DECISIONS)}")
    return found
