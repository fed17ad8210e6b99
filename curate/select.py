"""Chooses the rows of a dataset: every rule and weight is SQL over the pool's columns, every row dropped keeps its reasons.

One pass evaluates all rules of all rows side by side, shard range by shard range; what remains of it is a bit mask and a weight per row.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from curate.catalog import SAMPLES, Catalog
from curate.cuts import VERDICT, apply_mix, cut_columns, run_cuts
from curate.fingerprint import canonical_json, pool_digest
from curate.ledger import Outcomes, write_ledger
from curate.predicate import blame, check_expressions, find_labels
from curate.selection import ELEMENTS, Limit, Mix, PerGroup, Selection, Top
from curate.source_mix import MixRow
from curate.store import Pool
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from schemas.sample import STATUS_SUCCESS, shard_name
from schemas.selection import DOWNLOADED_RULE, SELECTION_FILE

__all__ = ["FunnelRow", "Limit", "Mix", "PerGroup", "SelectReport", "Selection", "Top", "find_selection", "select"]

logger = logging.getLogger(__name__)

_FORMAT = "winnow-selection"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FunnelRow:
    """One line of the funnel: a rule, how many rows fail it, how many fail it first, and how many are left after it."""

    rule: str
    sql: str
    num_failing: int
    num_first_failing: int
    num_remaining: int


@dataclass(frozen=True, kw_only=True)
class SelectReport:
    """What a selection kept; `folder` is relative to the pool, `was_current` tells that nothing had to be done."""

    name: str
    fingerprint: str
    folder: str
    num_rows: int
    num_kept: int
    effective_samples: float  # (sum w)^2 / sum w^2: what the weights leave of num_kept
    funnel: tuple[FunnelRow, ...]
    mix: tuple[MixRow, ...] = ()  # the sources as they came out, where a mix was asked for
    was_current: bool = False


def select(
    pool: Pool,
    selection: Selection,
    *,
    progress: Progress | None = None,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> SelectReport:
    """Evaluate a selection and write its ledger, its kept rows and last `selection.json`; a current one is left as it is.

    Raises `InputError` where an expression is wrong (naming the rule and the nearest right column) or a kept row has no usable weight,
    and `MissingColumnsError` where an annotation it reads is incomplete (with the command that completes it).
    """
    with Catalog(pool, memory_limit=memory_limit, threads=threads, sandboxed=True) as catalog:
        labels = _find_labels(catalog, selection)
        catalog.require_complete(labels)
        captions = _check_captions(catalog, selection)
        identity = _identity(catalog, selection, labels)
        fingerprint, folder = _name_folder(selection, identity)
        pool.remove_abandoned(folder)
        if pool.exists(f"{folder}/{SELECTION_FILE}"):
            return _read_report(pool, folder)
        check_expressions(catalog, selection.expressions(), labels)
        _evaluate(catalog, selection, labels)
        outcomes, funnel, cuts = _decide(catalog, selection)
        _check_weights(catalog, outcomes)
        mix = apply_mix(catalog, selection.mix, cuts, outcomes.weight) if selection.mix else ()
        metadata = {b"winnow.fingerprint": fingerprint.encode()}
        write_ledger(pool, folder, catalog.shards, outcomes, metadata, progress or SilentProgress())
        weights = outcomes.weight[outcomes.mask == 0]
        report = SelectReport(
            name=selection.name,
            fingerprint=fingerprint,
            folder=folder,
            num_rows=len(outcomes.mask),
            num_kept=len(weights),
            effective_samples=float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0,
            funnel=tuple(funnel),
            mix=mix,
        )
        content = _describe(catalog, identity, captions, cuts, report)
        # The file written last: that it exists means that the other two are whole.
        pool.commit_json(f"{folder}/{SELECTION_FILE}", content)
    if not report.num_kept:
        logger.warning("selection keeps no rows name=%s rows=%d", selection.name, report.num_rows)
    return report


def find_selection(pool: Pool, selection: Selection) -> SelectReport | None:
    """Return what `select` would return at once because it is current, or None where it would have to evaluate; writes nothing."""
    with Catalog(pool, sandboxed=True) as catalog:
        labels = _find_labels(catalog, selection)
        catalog.require_complete(labels)
        _, folder = _name_folder(selection, _identity(catalog, selection, labels))
        return _read_report(pool, folder) if pool.exists(f"{folder}/{SELECTION_FILE}") else None


def _name_folder(selection: Selection, identity: Mapping[str, object]) -> tuple[str, str]:
    """Return the fingerprint of a selection and its folder in the pool."""
    fingerprint = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    return fingerprint, f"selections/{selection.name}-{fingerprint[:12]}"


def _find_labels(catalog: Catalog, selection: Selection) -> list[str]:
    return find_labels(catalog, selection.expressions(), [name.removesuffix(ELEMENTS) for name in selection.captions])


def _check_captions(catalog: Catalog, selection: Selection) -> dict[str, str]:
    """Return where each caption column comes from, as `label.column` or a sample column; raise where it is not text."""
    sources = {}
    for name in selection.captions:
        table, column = catalog.resolve(name.removesuffix(ELEMENTS))
        kind = catalog.column_type(table, column)
        if kind not in ("VARCHAR", "VARCHAR[]"):
            raise InputError(
                f"caption {name!r} is {kind}; a caption is text, or a list of texts written as {name}{ELEMENTS}"
            )
        if (kind == "VARCHAR[]") != name.endswith(ELEMENTS):
            right = f"{name}{ELEMENTS}" if kind == "VARCHAR[]" else name.removesuffix(ELEMENTS)
            raise InputError(f"caption {name!r} is {kind}; write {right}")
        sources[name.removesuffix(ELEMENTS)] = column if table == SAMPLES else f"{table}.{column}"
    if len(sources) < len(selection.captions):
        raise InputError(f"a caption column is named twice: {', '.join(selection.captions)}")
    return sources


def _identity(catalog: Catalog, selection: Selection, labels: Sequence[str]) -> dict[str, object]:
    targets = {label: asdict(catalog.labels[label]) for label in labels}
    digest = pool_digest({header.shard: header.shard_digest for header in catalog.shards})
    return {"format": _FORMAT, "version": _VERSION, **selection.settings(), "labels": targets, "pool_digest": digest}


def _evaluate(catalog: Catalog, selection: Selection, labels: Sequence[str]) -> None:
    """Fill the table `verdict`: a row per row of the pool, in order, with the mask of failed rules and what the cuts need."""
    kind = _mask_type(selection)
    predicates = [f"{SAMPLES}.status = '{STATUS_SUCCESS}'", *map(catalog.expand, selection.rules.values())]
    bits = [f"CASE WHEN ({sql}\n) THEN 0::{kind} ELSE {1 << bit}::{kind} END" for bit, sql in enumerate(predicates)]
    mask = " | ".join(bits)
    columns = cut_columns(catalog, selection, where=f"({mask}) = 0", downloaded=predicates[0])
    try:
        catalog.tabulate(VERDICT, [f"{mask} AS mask", *columns], labels)
    except InputError as error:
        raise blame(catalog, selection.expressions(), labels, error) from error


def _decide(catalog: Catalog, selection: Selection) -> tuple[Outcomes, list[FunnelRow], dict[str, object]]:
    """Return every row's outcome and the funnel: rules as evaluated, then the cuts one after the other."""
    table = catalog.connection.sql(f"SELECT mask, weight FROM {VERDICT}").to_arrow_table()
    mask: npt.NDArray[np.unsignedinteger] = table["mask"].combine_chunks().to_numpy().copy()
    weight: npt.NDArray[np.float64] = table["weight"].to_numpy().copy()
    del table
    rules = [DOWNLOADED_RULE, *selection.rules]
    sqls = [f"status = '{STATUS_SUCCESS}'", *selection.rules.values()]
    funnel = _rule_funnel(mask, rules, sqls)
    cuts: dict[str, object] = {}
    for reason, description, positions in run_cuts(
        catalog, selection, f"SELECT rowid AS position, * FROM {VERDICT} WHERE mask = 0", cuts
    ):
        is_dropped = mask == 0
        is_dropped[positions] = False
        mask[is_dropped] = mask.dtype.type(1 << len(rules))
        rules.append(reason)
        dropped = int(is_dropped.sum())
        funnel.append(
            FunnelRow(
                rule=reason,
                sql=description,
                num_failing=dropped,
                num_first_failing=dropped,
                num_remaining=funnel[-1].num_remaining - dropped,
            )
        )
    return Outcomes(rules=rules, mask=mask, weight=weight), funnel, cuts


def _rule_funnel(mask: npt.NDArray[np.unsignedinteger], rules: Sequence[str], sqls: Sequence[str]) -> list[FunnelRow]:
    if mask.dtype.itemsize <= 2:  # counting beats sorting ten million rows
        counts = np.bincount(mask)
        values = np.flatnonzero(counts).astype(mask.dtype)
        counts = counts[values]
    else:
        values, counts = np.unique(mask, return_counts=True)
    remaining, funnel = len(mask), []
    for bit, (rule, sql) in enumerate(zip(rules, sqls, strict=True)):
        fails = (values >> mask.dtype.type(bit)) & mask.dtype.type(1) == 1
        first = fails & (values & mask.dtype.type((1 << bit) - 1) == 0)
        remaining -= int(counts[first].sum())
        funnel.append(
            FunnelRow(
                rule=rule,
                sql=sql,
                num_failing=int(counts[fails].sum()),
                num_first_failing=int(counts[first].sum()),
                num_remaining=remaining,
            )
        )
    return funnel


def _check_weights(catalog: Catalog, outcomes: Outcomes) -> None:
    kept = outcomes.mask == 0
    weights = outcomes.weight
    (wrong,) = np.nonzero(kept & ~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        starts = np.cumsum([0, *(header.num_rows for header in catalog.shards)])
        places = []
        for position in wrong[:5]:
            index = int(np.searchsorted(starts, position, side="right")) - 1
            header = catalog.shards[index]
            row = int(position - starts[index])
            uid = catalog.pool.read_table(catalog.pool.shard_parquet(header.shard), ["uid"])["uid"][row].as_py()
            value = "null or NaN" if np.isnan(weights[position]) else f"{weights[position]:g}"
            places.append(f"{uid} (shard {shard_name(header.shard)}, row {row}): {value}")
        raise InputError(
            f"weight must be a finite number, 0 or more, for every kept row; {len(wrong)} of {int(kept.sum())} are not:\n  "
            + "\n  ".join(places)
            + "\nadd a rule that drops such rows, or use coalesce(..., 0)"
        )
    if kept.any() and not weights[kept].any():
        raise InputError("every kept row has weight 0, so nothing could ever be drawn; give some rows a weight above 0")


def _mask_type(selection: Selection) -> str:
    bits = len(selection.rules) + 5
    return next(
        kind for size, kind in ((8, "UTINYINT"), (16, "USMALLINT"), (32, "UINTEGER"), (64, "UBIGINT")) if bits <= size
    )


def _describe(
    catalog: Catalog,
    identity: Mapping[str, object],
    captions: Mapping[str, str],
    cuts: Mapping[str, object],
    report: SelectReport,
) -> dict[str, object]:
    counts = {"num_shards": len(catalog.shards), "num_rows": report.num_rows, "num_kept": report.num_kept}
    return {
        **identity,
        "fingerprint": report.fingerprint,
        "caption_sources": dict(captions),
        **cuts,
        **counts,
        "effective_samples": report.effective_samples,
        "funnel": [asdict(row) for row in report.funnel],
        **({"realised_mix": [asdict(row) for row in report.mix]} if report.mix else {}),
    }


def _read_report(pool: Pool, folder: str) -> SelectReport:
    content = json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}"))
    return SelectReport(
        name=content["name"],
        fingerprint=content["fingerprint"],
        folder=folder,
        num_rows=content["num_rows"],
        num_kept=content["num_kept"],
        effective_samples=content["effective_samples"],
        funnel=tuple(FunnelRow(**row) for row in content["funnel"]),
        mix=tuple(MixRow(**row) for row in content.get("realised_mix", ())),
        was_current=True,
    )
