"""The demo's contact sheet: examples of what was kept and of what each rule dropped, each with its caption and what was planted."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from curate.store import Pool
from pipelines.demo.compare import Comparison
from pipelines.sheet import Example, draw
from schemas.sample import STATUS_SUCCESS

_PER_ROW = 9
_KEPT = "kept"
_MISSED = "kept, although faulty"


def draw_sheet(pool: Pool, ledger: pa.Table, rules: Sequence[str], comparison: Comparison) -> bytes:
    """Return the sheet as PNG: kept pairs, faults that were missed, then a row per rule with the first pairs that it dropped, in pool order."""
    return draw(_choose(pool, ledger, rules, comparison), per_row=_PER_ROW)


def _choose(
    pool: Pool, ledger: pa.Table, rules: Sequence[str], comparison: Comparison
) -> Mapping[str, Sequence[Example]]:
    """Return up to a row of examples by heading; headings without any are left out."""
    headings = {rule: f"dropped by the rule {rule!r}" for rule in rules}
    rows: dict[str, list[Example]] = {name: [] for name in (_KEPT, _MISSED, *headings.values())}
    reasons = dict(zip(ledger["uid"].to_pylist(), ledger["first_failing_rule"].to_pylist(), strict=True))
    for shard in pool.shards():
        table = pool.read_table(pool.shard_parquet(shard), ["uid", "key", "caption", "status"])
        for sample in table.to_pylist():
            uid, rule = sample["uid"], reasons[sample["uid"]]
            chosen = rows[headings[rule] if rule else _MISSED if uid in comparison.missed else _KEPT]
            if sample["status"] == STATUS_SUCCESS and len(chosen) < _PER_ROW:
                note = f"planted: {comparison.kinds[uid]}"
                chosen.append(
                    Example(pool=pool, shard=shard, key=sample["key"], caption=sample["caption"] or "", note=note)
                )
    return {heading: examples for heading, examples in rows.items() if examples}
