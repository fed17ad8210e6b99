"""Compares what a selection dropped with what was planted: the only module of the demo that reads the truth."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curate.store import Store
from pipelines.demo.web import CLEAN, FAULTS, TROUBLES, TRUTH_FILE
from schemas.errors import StaleDatasetError
from schemas.selection import TOP_RULE

MISMATCHED = "mismatched"
_CURVE_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """One planted kind: how many rows, how many of them the selection dropped, and by which rules first."""

    kind: str
    is_fault: bool  # false for sound rows, whose drops are mistakes
    num_rows: int
    num_dropped: int
    dropped_by: Mapping[str, int]

    @property
    def dropped_share(self) -> float:
        """Recall of a fault; for sound rows the share lost by mistake."""
        return self.num_dropped / self.num_rows if self.num_rows else 0.0


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """One rule: the rows it was the first to drop, and how many of them are faulty."""

    rule: str
    num_dropped: int
    num_faulty: int

    @property
    def precision(self) -> float:
        """Faulty rows among the dropped, 0 to 1; 0 where nothing was dropped."""
        return self.num_faulty / self.num_dropped if self.num_dropped else 0.0


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What dropping the pairs of the lowest score would do to mismatched captions, among those that passed every other rule."""

    dropped_share: float  # of the pairs that the score judges, 0 to 1
    precision: float  # mismatched among the dropped
    recall: float  # dropped among the mismatched


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The planted truth against a ledger."""

    faults: Sequence[FaultRow]
    rules: Sequence[RuleRow]
    num_rows: int
    num_faulty: int
    num_dropped: int
    num_dropped_faulty: int
    kinds: Mapping[str, str]  # planted, of every uid: for people who look at examples
    missed: frozenset[str]  # uids of the faulty rows that were kept

    @property
    def precision(self) -> float:
        """Faulty rows among the dropped, 0 to 1."""
        return self.num_dropped_faulty / self.num_dropped if self.num_dropped else 0.0

    @property
    def recall(self) -> float:
        """Dropped rows among the faulty, 0 to 1."""
        return self.num_dropped_faulty / self.num_faulty if self.num_faulty else 0.0

    @property
    def kept_purity(self) -> float:
        """Sound rows among the kept, 0 to 1."""
        num_kept = self.num_rows - self.num_dropped
        num_kept_faulty = self.num_faulty - self.num_dropped_faulty
        return (num_kept - num_kept_faulty) / num_kept if num_kept else 0.0


def read_truth(folder: Store) -> pa.Table:
    """Return the planted truth of the web in `folder`."""
    return folder.read_table(TRUTH_FILE)


def compare(truth: pa.Table, ledger: pa.Table) -> Comparison:
    """Count the ledger's drops by planted kind and by rule.

    Copies are judged as groups: which member of a group is "the copy" is arbitrary, so one member that was kept stands for the original
    and every other is a copy. A fault is a row that ought to be dropped.
    """
    rows = {row["uid"]: row for row in truth.select(["uid", "kind", "group"]).to_pylist()}
    outcomes = {row["uid"]: row for row in ledger.select(["uid", "kept", "first_failing_rule"]).to_pylist()}
    if rows.keys() != outcomes.keys():
        raise StaleDatasetError(
            f"the ledger and the planted truth differ in {len(rows.keys() ^ outcomes.keys())} of {len(rows)} rows; "
            "start the demo afresh with another --out"
        )
    kinds = {uid: row["kind"] for uid, row in rows.items()}
    kept = {uid for uid, row in outcomes.items() if row["kept"]}
    roles = _cast_copies(kinds, {uid: row["group"] for uid, row in rows.items()}, kept)
    rules = {uid: row["first_failing_rule"] for uid, row in outcomes.items() if not row["kept"]}
    is_faulty = {uid: role in FAULTS for uid, role in roles.items()}
    return Comparison(
        faults=_count_kinds(roles, rules),
        rules=_count_rules(rules, is_faulty),
        num_rows=len(rows),
        num_faulty=sum(is_faulty.values()),
        num_dropped=len(rules),
        num_dropped_faulty=sum(is_faulty[uid] for uid in rules),
        kinds=kinds,
        missed=frozenset(uid for uid in kept if is_faulty[uid]),
    )


def mismatch_curve(truth: pa.Table, ledger: pa.Table, scores: Mapping[str, float | None]) -> list[CurvePoint]:
    """Return how well a score parts mismatched captions from sound ones, at every twentieth of the pairs that it judges.

    `scores` are by uid, higher agrees better. Pairs with another fault, and those that another rule drops first, are left out.
    """
    kinds = dict(zip(truth["uid"].to_pylist(), truth["kind"].to_pylist(), strict=True))
    judged = [
        (score, kinds[row["uid"]] == MISMATCHED)
        for row in ledger.select(["uid", "kept", "first_failing_rule"]).to_pylist()
        if (row["kept"] or row["first_failing_rule"] == TOP_RULE)
        and (score := scores.get(row["uid"])) is not None
        and (kinds[row["uid"]] == MISMATCHED or kinds[row["uid"]] not in FAULTS)
    ]
    judged.sort(key=lambda pair: pair[0])
    total = sum(is_mismatched for _, is_mismatched in judged)
    points = []
    for step in range(1, _CURVE_STEPS):
        count = round(len(judged) * step / _CURVE_STEPS)
        found = sum(is_mismatched for _, is_mismatched in judged[:count])
        points.append(
            CurvePoint(
                dropped_share=step / _CURVE_STEPS,
                precision=found / count if count else 0.0,
                recall=found / total if total else 0.0,
            )
        )
    return points


def _cast_copies(kinds: Mapping[str, str], groups: Mapping[str, int | None], kept: set[str]) -> Mapping[str, str]:
    """Return every row's kind once a kept copy and a dropped original have changed places."""
    roles = dict(kinds)
    members: dict[int, list[str]] = defaultdict(list)
    for uid, group in groups.items():
        if group is not None:
            members[group].append(uid)
    for uids in members.values():
        (original,) = (uid for uid in uids if kinds[uid] not in {"near_copy", "exact_copy"})
        survivors = [uid for uid in uids if uid in kept]
        if survivors and original not in kept:
            roles[original], roles[survivors[0]] = roles[survivors[0]], roles[original]
    return roles


def _count_kinds(roles: Mapping[str, str], rules: Mapping[str, str]) -> list[FaultRow]:
    totals = Counter(roles.values())
    dropped_by: dict[str, Counter[str]] = defaultdict(Counter)
    for uid, rule in rules.items():
        dropped_by[roles[uid]][rule] += 1
    return [
        FaultRow(
            kind=kind,
            is_fault=kind in FAULTS,
            num_rows=totals[kind],
            num_dropped=dropped_by[kind].total(),
            dropped_by=dict(dropped_by[kind].most_common()),
        )
        for kind in (*FAULTS, *TROUBLES, CLEAN)
    ]


def _count_rules(rules: Mapping[str, str], is_faulty: Mapping[str, bool]) -> list[RuleRow]:
    drops: Iterable[tuple[str, int]] = Counter(rules.values()).most_common()
    faulty = Counter(rule for uid, rule in rules.items() if is_faulty[uid])
    return [RuleRow(rule=rule, num_dropped=count, num_faulty=faulty[rule]) for rule, count in drops]
