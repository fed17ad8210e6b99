"""Explanations and differences as tables for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from pipelines.diff import Difference, Side
from pipelines.render import cell, make_table
from pipelines.why import Explanation, SelectionVerdict

# What the head of an explanation shows of a sample, in this order; --json has all of it.
_HEAD = ("uid", "url", "alt_text", "status", "error_message", "num_occurrences", "original_width", "original_height")
_HIDDEN = frozenset({"sha256", "exif", "key"})


def tabulate_explanation(found: Explanation) -> RenderableType:
    """Return one sample as a head, its selections, its copies, its captions, and every measurement."""
    parts: list[RenderableType] = [_head(found)]
    for verdict in found.selections:
        parts += ["", *_verdict(verdict)]
    if not found.selections:
        parts += ["", "no selection yet: winnow select makes one"]
    for copies in found.copies:
        table = make_table(f"{copies.column} = {copies.group}", f"{copies.num_others:,} others")
        for row in copies.others:
            table.add_row(row["uid"], escape(str(row["url"])))
        parts += ["", table]
    parts += ["", _captions(found), "", _measurements(found)]
    return Group(*parts)


def tabulate_difference(found: Difference) -> RenderableType:
    """Return two selections side by side: counts, reasons, and examples of each side."""
    first, second = found.only_first, found.only_second
    table = make_table("", right=("samples", "share"))
    for name, count in (
        ("both keep", found.num_both),
        (f"only {first.folder} keeps", first.num_samples),
        (f"only {second.folder} keeps", second.num_samples),
        ("neither keeps", found.num_neither),
    ):
        table.add_row(name, f"{count:,}", f"{count / max(1, found.num_rows):.1%}")
    overlap = f"of what either keeps, both keep {found.jaccard:.1%}; {found.num_reweighted:,} of those have another share of the draws"
    return Group(table, overlap, *_side(first, second.folder), *_side(second, first.folder))


def _head(found: Explanation) -> RenderableType:
    table = make_table("sample", "")
    others = [name for name in found.sample if name not in {*_HEAD, *_HIDDEN}]
    for name in (*_HEAD, *others):
        if found.sample.get(name) is not None:
            table.add_row(name, escape(cell(found.sample[name])))
    return table


def _verdict(verdict: SelectionVerdict) -> list[RenderableType]:
    outcome = f"kept, weight {verdict.weight:g}" if verdict.weight is not None else "dropped"
    parts: list[RenderableType] = [Text(f"{verdict.folder}: {outcome}", style="bold")]
    table = make_table("rule", "condition", "values", "")
    for row in verdict.rules:
        mark = "passed" if row.passed else "FAILED, dropped it" if row.is_first else "failed too"
        style = "" if row.passed else "bold red" if row.is_first else "red"
        table.add_row(escape(row.rule), escape(row.sql), escape(_assignments(row.values)), Text(mark, style=style))
    parts.append(table)
    if verdict.changed_labels:
        parts.append(
            f"annotated anew since: {', '.join(verdict.changed_labels)}; the values are today's, the outcome is the selection's"
        )
    return parts


def _captions(found: Explanation) -> RenderableType:
    table = make_table("caption", "text", "made by")
    for caption in found.captions:
        text = caption.text if isinstance(caption.text, str) else "\n".join(caption.text)
        table.add_row(caption.column, escape(text[:2_000]), escape(_assignments(caption.provenance)))
    return table


def _measurements(found: Explanation) -> RenderableType:
    table = make_table("label", "column", "value")
    for label, row in found.labels.items():
        for name, value in row.items():
            table.add_row(label, name, escape(cell(value)))
    return table


def _side(side: Side, other: str) -> list[RenderableType]:
    if not side.num_samples:
        return []
    reasons = make_table(f"only {side.folder} keeps: dropped from {other} by", right=("samples",))
    for reason, count in side.reasons.items():
        reasons.add_row(escape(str(reason)), f"{count:,}")
    examples = make_table("for example", "caption", "URL", "dropped by")
    for row in side.examples:
        examples.add_row(row["uid"], escape(cell(row["alt_text"])), escape(str(row["url"])), escape(str(row["reason"])))
    return ["", reasons, "", examples]


def _assignments(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {cell(value) or 'null'}" for name, value in values.items())
