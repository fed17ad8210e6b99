"""What an annotation would do, as a table and as lines: shards done and to do, why, and the time it may take."""

import os
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape

from curate.effort import BENCHMARK
from curate.outlook import OperatorOutlook, Outlook
from pipelines.render import UP_TO_DATE, make_table

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def tabulate_outlook(outlook: Outlook, num_workers: int = 0) -> RenderableType:
    """Return operators with what is done, what is to do and why; below stands what it may take in all."""
    table = make_table("label", "operator", right=("done", "to do", "rows", "work"))
    table.add_column("rate from", no_wrap=True)
    table.add_column("why", overflow="fold")
    for entry in outlook.operators:
        counts = (f"{entry.num_done:,}", f"{entry.num_todo:,}", f"{entry.num_rows:,}" if entry.num_todo else "")
        source = entry.rate_source if entry.num_todo else ""
        reason = escape(entry.reason) if entry.num_todo else UP_TO_DATE
        table.add_row(entry.label, entry.operator, *counts, _work(entry), source, reason)
    return Group(table, *list_totals(outlook, num_workers))


def list_operators(outlook: Outlook) -> Iterator[str]:
    """Yield a line for every operator that has something to do."""
    for entry in outlook.operators:
        if entry.num_todo:
            work = f", {_work(entry)}" if entry.seconds is not None else ""
            yield f"{entry.label}: {entry.num_done:,} of {outlook.num_shards:,} shards done, {entry.num_todo:,} to do{work} ({entry.reason})"


def list_totals(outlook: Outlook, num_workers: int = 0) -> Iterator[str]:
    """Yield what everything may take, what is not known of it, and which other annotations it makes outdated."""
    if not outlook.is_current:
        if any(entry.seconds is not None for entry in outlook.operators if entry.num_todo):
            yield _sum_up(outlook, num_workers or len(os.sched_getaffinity(0)))
        if any(entry.rate_source == BENCHMARK for entry in outlook.operators if entry.num_todo):
            yield "a rate from the benchmark is of one core of its machine, and of a small model; the first shards will tell"
        if outlook.unmeasured:
            yield f"not counted, for nobody measured it yet: {', '.join(outlook.unmeasured)}"
    for label, sources in outlook.outdated.items():
        yield f"{label} was made from {', '.join(sources)} as it was; name it too to have it computed again"


def _sum_up(outlook: Outlook, workers: int) -> str:
    shared = f", {format_seconds(outlook.pass_seconds)} of it reading and decoding" if outlook.pass_seconds else ""
    return (
        f"about {format_seconds(outlook.seconds)} of work{shared}: {format_seconds(outlook.seconds / workers)} on {workers} "
        f"worker{'' if workers == 1 else 's'}, models to load and Ray to start left out"
    )


def format_seconds(seconds: float) -> str:
    """Return seconds in the unit that suits them: `40 s`, `2.5 min`, `1.3 d`."""
    for size, unit in _UNITS:
        if seconds >= size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return "under 1 s"


def _work(entry: OperatorOutlook) -> str:
    if not entry.num_todo:
        return ""
    return "?" if entry.seconds is None else format_seconds(entry.seconds)
