"""Takes samples out of a selection: its kept rows lose theirs, the ledger keeps a row that says they are forgotten, the counts follow.

The selection's identity stays, so nothing that was made of it has to be made again.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.forget_files import Eraser, Mask, empty_rows
from curate.forgotten import is_in
from curate.store import Pool
from schemas.sample import STATUS_FORGOTTEN
from schemas.selection import DOWNLOADED_RULE, LEDGER_FILE, SELECTED_FILE, SELECTION_FILE

# What `winnow select` writes of a row without a picture.
_LEDGER_ROW = {
    "uid": ...,
    "status": STATUS_FORGOTTEN,
    "kept": False,
    "first_failing_rule": DOWNLOADED_RULE,
    "failing_rules": [DOWNLOADED_RULE],
}


def forget_in_selection(eraser: Eraser, pool: Pool, folder: str, uids: frozenset[str]) -> None:
    """Remove samples from a selection (its folder in the pool); `selection.json` is last."""

    def is_selected(table: pa.Table) -> Mask:
        return is_in(table["uid"], uids)

    def is_told(table: pa.Table) -> Mask:
        is_old = pc.fill_null(pc.not_equal(table["status"], STATUS_FORGOTTEN), True)
        found: Mask = is_selected(table) & np.array(is_old.to_numpy(), dtype=bool)
        return found

    gone = eraser.parquet(
        pool,
        f"{folder}/{LEDGER_FILE}",
        ["uid", "status"],
        is_told,
        lambda table, mask: empty_rows(table, mask, _LEDGER_ROW),
    )
    gone += eraser.parquet(
        pool,
        f"{folder}/{SELECTED_FILE}",
        ["uid"],
        is_selected,
        lambda table, mask: table.filter(pa.array(~mask)),
    )
    path = f"{folder}/{SELECTION_FILE}"
    content = json.loads(pool.read_bytes(path))
    if eraser.is_dry:
        if gone:
            eraser.journal.note(pool.locate(path), gone)
        return
    updated = _count(pool, folder, content)
    if updated != content:
        eraser.replace(pool, path, gone, (json.dumps(updated, indent=2, ensure_ascii=True) + "\n").encode())


def _count(pool: Pool, folder: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return selection.json with the numbers that the ledger and the kept rows have now."""
    failing: Counter[str] = Counter()
    first: Counter[str] = Counter()
    with pool.open(f"{folder}/{LEDGER_FILE}") as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["first_failing_rule", "failing_rules"]):
            failing.update(_value_counts(pc.list_flatten(batch.column("failing_rules"))))
            first.update(_value_counts(batch.column("first_failing_rule").drop_null()))
    funnel, remaining = [], content["num_rows"]
    for row in content["funnel"]:
        rule = row["rule"]
        remaining -= first[rule]
        funnel.append({
            **row,
            "num_failing": failing[rule],
            "num_first_failing": first[rule],
            "num_remaining": remaining,
        })
    with pool.open(f"{folder}/{SELECTED_FILE}") as file:
        weights = pq.ParquetFile(file).read(columns=["weight"])["weight"].to_numpy()
    effective = float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0
    return {**content, "num_kept": len(weights), "effective_samples": effective, "funnel": funnel}


def _value_counts(values: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()}
