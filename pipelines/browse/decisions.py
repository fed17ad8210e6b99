"""Decisions taken by hand: safe on disk before the click is answered, and a column of the pool soon after.

    manual/decisions.parquet                   what was decided, by uid: the truth
    annotations/manual/<fingerprint12>/*.parquet   the same as an annotation, a row for every sample; made of it again whenever it changes

Two browsers of one pool do not undo each other's decisions: every change is made to what lies on the disk at that moment, under a lock.
"""

import fcntl
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from curate.annotation_file import write_annotations
from curate.columns import Output
from curate.fingerprint import pool_digest
from curate.operators.manual import DECISIONS, DECISIONS_SCHEMA, Manual, read_decisions
from curate.plan import make_plan
from curate.store import LabelTarget, Pool
from schemas.errors import InputError
from schemas.selection import SELECTION_FILE

LABEL = Manual.name
DECISIONS_FILE = "manual/decisions.parquet"
_LOCK_FILE = "manual/.lock"


class Decisions:
    """The decisions about a pool's samples; safe to use from several threads."""

    def __init__(self, pool: Pool) -> None:
        """Read what was decided before; raises InputError where the label `manual` is some other operator's."""
        target = pool.labels().get(LABEL)
        if target and target.operator != Manual.name:
            raise InputError(
                f"the label {LABEL!r} of {pool.root} belongs to the operator {target.operator}; decisions need that name: annotate "
                f"{target.operator} again with another label"
            )
        self._pool = pool
        self._lock = threading.RLock()
        self._by_uid = self._read()

    def all(self) -> dict[str, str]:
        """Return every decision by uid."""
        with self._lock:
            return dict(self._by_uid)

    def decide(self, uids: Sequence[str], decision: str | None) -> dict[str, str]:
        """Decide about samples, or take decisions back with None; returns all decisions, which lie on the disk by then."""
        if decision is not None and decision not in DECISIONS:
            raise InputError(f"decision {decision!r} must be one of {', '.join(DECISIONS)}, or null to take it back")
        with self._lock, self._alone():
            decided = self._read()
            for uid in uids:
                if decision is None:
                    decided.pop(uid, None)
                else:
                    decided[uid] = decision
            uids_in_order = sorted(decided)
            columns = [uids_in_order, [decided[uid] for uid in uids_in_order]]
            table = pa.table([pa.array(values, pa.string()) for values in columns], schema=DECISIONS_SCHEMA)
            self._pool.commit_table(DECISIONS_FILE, table)
            self._by_uid = decided
            return dict(decided)

    def is_published(self) -> bool:
        """Tell whether the annotation says what was decided; without a decision there need be none."""
        with self._lock:
            target = self._pool.labels().get(LABEL)
            if target is None:
                return not self._by_uid
            operator = self._operator()
            return operator is not None and self._plan_fingerprint(operator) == target.fingerprint

    def publish(self) -> bool:
        """Write the annotation unless it is there, every shard's file and then the label; tells whether anything was written."""
        with self._lock, self._alone():
            self._by_uid = self._read()
            operator = self._operator()
            if operator is None:  # asked for before the first decision
                self._pool.commit_table(DECISIONS_FILE, DECISIONS_SCHEMA.empty_table())
                operator = Manual(decisions=self._pool.locate(DECISIONS_FILE))
            headers = {shard: self._pool.shard_header(shard) for shard in self._pool.require_shards()}
            columns = self._pool.read_footer(self._pool.shard_parquet(min(headers))).schema.to_arrow_schema().names
            (planned,) = make_plan(self._pool, [operator], columns)
            missing = self._pool.missing(operator.name, planned.fingerprint, headers)
            digest = pool_digest({shard: header.shard_digest for shard, header in headers.items()})
            for shard in missing:
                uids = self._pool.read_table(self._pool.shard_parquet(shard), ["uid"])["uid"].combine_chunks()
                column = pa.array([self._by_uid.get(uid) for uid in uids.to_pylist()], pa.string())
                with write_annotations(self._pool, [planned], headers[shard], digest) as writers:
                    output = Output(columns={"decision": column}, errors=[None] * len(uids))
                    writers[planned.fingerprint].add(uids, output)
            before = self._pool.labels().get(LABEL)
            target = LabelTarget(operator=operator.name, fingerprint=planned.fingerprint)
            # Last: until every shard has the new decisions, SQL sees the old ones, whole.
            self._pool.set_labels({LABEL: target})
            self._remove_unused({entry.fingerprint[:12] for entry in (before, target) if entry})
            return bool(missing) or before != target

    def _operator(self) -> Manual | None:
        return Manual(decisions=self._pool.locate(DECISIONS_FILE)) if self._pool.exists(DECISIONS_FILE) else None

    def _plan_fingerprint(self, operator: Manual) -> str:
        (planned,) = make_plan(self._pool, [operator], ["uid"])
        return planned.fingerprint

    def _read(self) -> dict[str, str]:
        return read_decisions(self._pool.locate(DECISIONS_FILE)) if self._pool.exists(DECISIONS_FILE) else {}

    def _remove_unused(self, needed: set[str]) -> None:
        """Remove the annotations of earlier decisions that no selection was made with; the last one stays for whoever is reading it."""
        folder = f"annotations/{Manual.name}"
        for selection in self._pool.selections():
            target = json.loads(self._pool.read_bytes(f"{selection}/{SELECTION_FILE}"))["labels"].get(LABEL, {})
            needed = needed | {target.get("fingerprint", "")[:12]}
        for fingerprint in set(self._pool.list_names(folder)) - needed:
            for name in self._pool.list_names(f"{folder}/{fingerprint}"):
                self._pool.remove(f"{folder}/{fingerprint}/{name}")
            if self._pool.is_local:
                with suppress(OSError):  # not empty: another process is writing there
                    Path(self._pool.locate(f"{folder}/{fingerprint}")).rmdir()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the decisions meanwhile; object stores have no locks, and need one browser at a time."""
        if not self._pool.is_local:
            yield
            return
        path = Path(self._pool.locate(_LOCK_FILE))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
