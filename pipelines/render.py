"""Reports as tables for people; the same reports as JSON values for programs."""

import csv
import inspect
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from curate.operator import Operator, PoolOperator
from curate.outlook import NEVER
from curate.store import Store
from schemas.sample import STATUS_SUCCESS
from train.datacomp import Summary, summarise

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.annotate import AnnotateReport
    from curate.build import BuildReport
    from curate.fetch.download import DownloadReport
    from curate.fetch.importing import ImportReport
    from curate.select import SelectReport
    from curate.store import Pool
    from pipelines.status import PoolStatus

# Rows of a query that a table shows.
MAX_ROWS = 100
MAX_ERRORS = 10
UP_TO_DATE = "up to date"


def tabulate_operators(operators: Mapping[str, type[Operator]]) -> RenderableType:
    """Return every operator with what it reads, what it writes and the first line of its description."""
    table = make_table("operator", "reads", "writes", "what it measures")
    for name, cls in operators.items():
        about = (inspect.getdoc(cls) or "").partition("\n")[0]
        kind = " (every row of the pool)" if issubclass(cls, PoolOperator) else ""
        table.add_row(name, ", ".join(cls.reads), ", ".join(cls.writes.names), escape(about + kind))
    return table


def describe_operators(operators: Mapping[str, type[Operator]]) -> list[dict[str, object]]:
    """Return every operator as JSON values."""
    return [
        {
            "name": name,
            "version": cls.version,
            "reads": list(cls.reads),
            "writes": {field.name: str(field.type) for field in cls.writes},
            "pool_wide": issubclass(cls, PoolOperator),
            "description": inspect.getdoc(cls) or "",
        }
        for name, cls in operators.items()
    ]


def tabulate_download(report: "DownloadReport") -> RenderableType:
    """Return what a download did, with its most frequent errors."""
    if not report.num_shards_written:
        return f"{UP_TO_DATE}: {report.num_shards:,} shards, nothing left to fetch"
    summary = (
        f"{report.num_rows:,} URLs in {report.num_shards_written:,} of {report.num_shards:,} shards, "
        f"{report.num_successes:,} downloaded ({_percent(report.success_ratio)})"
    )
    return _with_errors(summary, report.messages)


def tabulate_import(report: "ImportReport") -> RenderableType:
    """Return what an import brought, with the most frequent errors of its rows."""
    if not report.num_shards_written:
        return f"{UP_TO_DATE}: {report.num_shards:,} shards, nothing left to import"
    parts = [
        f"{report.num_rows:,} rows of {report.kind} became {report.num_samples:,} samples in {report.num_shards:,} shards, "
        f"{report.num_successes:,} with an image"
    ]
    if report.num_known:
        parts.append(f"the pool had {report.num_known:,} of them already")
    return _with_errors("; ".join(parts), report.messages)


def tabulate_annotations(report: "AnnotateReport") -> RenderableType:
    """Return what `annotate` did, operator by operator."""
    table = make_table("label", "operator", "fingerprint", right=("shards written", UP_TO_DATE, "rows", "error rows"))
    for entry in report.operators:
        counts = (entry.num_shards, entry.num_shards_current, entry.num_rows, entry.num_errors)
        table.add_row(entry.sql_name, entry.operator, entry.fingerprint[:12], *(f"{count:,}" for count in counts))
    # What nobody asked for in so many words: shards done again, and rows computed again because others came.
    reasons = [
        f"{entry.sql_name}: {escape(entry.reason)}" for entry in report.operators if entry.reason not in ("", NEVER)
    ]
    return Group(table, *reasons, f"{report.seconds:,.1f} s")


def tabulate_funnel(report: "SelectReport") -> RenderableType:
    """Return the funnel: how many rows each rule fails, fails first, and leaves."""
    table = make_table("rule", "condition", right=("fails", "fails first", "left", "share"))
    table.add_row("", "every row of the pool", "", "", f"{report.num_rows:,}", _percent(1.0))
    for row in report.funnel:
        share = row.num_remaining / report.num_rows if report.num_rows else 0.0
        counts = (row.num_failing, row.num_first_failing, row.num_remaining)
        table.add_row(escape(row.rule), escape(row.sql), *(f"{count:,}" for count in counts), _percent(share))
    state = f", {UP_TO_DATE}" if report.was_current else ""
    note = f"kept {report.num_kept:,} of {report.num_rows:,} rows, {report.effective_samples:,.1f} effective by weight{state}"
    if not report.mix:
        return Group(table, note)
    sources = make_table("source", right=("target", "rows", "of the rows", "of the draws"))
    for entry in report.mix:
        shares = (_percent(share) for share in (entry.row_share, entry.draw_share))
        sources.add_row(escape(entry.source), _percent(entry.target_share), f"{entry.num_rows:,}", *shares)
    return Group(table, note, sources)


def describe_selection(report: "SelectReport", pool: "Pool") -> dict[str, object]:
    """Return a selection's report as JSON values."""
    return {
        "folder": pool.locate(report.folder),
        "name": report.name,
        "fingerprint": report.fingerprint,
        "num_rows": report.num_rows,
        "num_kept": report.num_kept,
        "effective_samples": report.effective_samples,
        "was_current": report.was_current,
        "funnel": [vars(row) for row in report.funnel],
        "mix": [vars(row) for row in report.mix],
    }


def describe_build(report: "BuildReport") -> str:
    """Return what a build made, in a line."""
    state = "" if report.num_written else f"{UP_TO_DATE}: "
    return f"{state}{report.num_samples:,} samples in {report.num_shards:,} shards, {_size(report.num_bytes)}"


def tabulate_evaluation(results: Mapping[str, Mapping[str, float]]) -> RenderableType:
    """Return the metrics of each data set beside what guessing scores and, where DataComp's tasks are among them, its averages."""
    table = make_table("data", "metric", right=("score", "chance"))
    for name, metrics in results.items():
        for metric, value in metrics.items():
            if metric.startswith("chance_"):
                continue
            chance = metrics.get(f"chance_{metric}")
            table.add_row(
                escape(name), escape(metric), _number(metric, value), "" if chance is None else _number(metric, chance)
            )
    summary = summarise(results)
    return table if summary is None else Group(table, "", _tabulate_summary(summary))


def describe_evaluation(results: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    """Return the metrics as JSON values; DataComp's tasks and averages, and what is missing in them, under `DataComp`."""
    summary = summarise(results)
    return {**results, **({} if summary is None else {"DataComp": asdict(summary)})}


def _tabulate_summary(summary: Summary) -> RenderableType:
    """Return DataComp's averages; one that lacks tasks says of how many it is."""
    table = make_table("DataComp", right=("score", "tasks"))
    for name, score in summary.scores.items():
        table.add_row(escape(name), f"{score:.4f}", "")
    for name, group in summary.groups.items():
        found = group.num_tasks - len(group.missing)
        title = f"{name} (incomplete)" if group.missing else name
        table.add_row(Text(title, style="bold"), f"{group.mean:.4f}", f"{found} of {group.num_tasks}")
    missing = summary.groups["Average"].missing
    return Group(table, "", f"missing: {', '.join(missing)}") if missing else table


def tabulate_status(status: "PoolStatus") -> RenderableType:
    """Return a pool's status as a few lines and three tables."""
    share = status.num_successes / status.num_samples if status.num_samples else 0.0
    parts: list[RenderableType] = [
        f"{status.root}: {status.num_shards:,} shards, {status.num_samples:,} samples, {status.num_successes:,} downloaded "
        f"({_percent(share)}), {_size(status.num_bytes)}"
    ]
    if status.errors:
        errors = make_table("download error", right=("samples",))
        for message, count in status.errors:
            errors.add_row(escape(message), f"{count:,}")
        parts += ["", errors]
    if status.operators:
        heads = ("done", "stale", "error rows", "size", "worker seconds")
        table = make_table("label", "operator", "fingerprint", right=heads)
        for entry in status.operators:
            done = f"{entry.done:,}/{entry.total:,}"
            style = "" if entry.done == entry.total else "bold"
            counts = (f"{entry.stale:,}", f"{entry.errors:,}", _size(entry.num_bytes), f"{entry.seconds:,.1f}")
            table.add_row(entry.label or "-", entry.operator, entry.fingerprint, Text(done, style), *counts)
        parts += ["", table]
    if status.selections:
        selections = make_table("selection", right=("kept",))
        for selection in status.selections:
            selections.add_row(escape(selection.folder), f"{selection.num_kept:,}")
        parts += ["", selections]
    return Group(*parts)


def tabulate_rows(relation: "DuckDBPyRelation") -> RenderableType:
    """Return the first rows of a query's result."""
    reader = _read(relation)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for field in reader.schema:
        table.add_column(escape(field.name), justify="right" if _is_numeric(field.type) else "left", overflow="fold")
    rows = list(itertools.islice(_rows(reader), MAX_ROWS + 1))
    for row in rows[:MAX_ROWS]:
        table.add_row(*(escape(cell(value)) for value in row))
    if len(rows) <= MAX_ROWS:
        return table
    return Group(table, f"the first {MAX_ROWS} rows; --csv, --json and --parquet FILE give all of them")


def write_json(relation: "DuckDBPyRelation", stream: TextIO) -> None:
    """Write a query's result as a JSON list of objects, one a line, without holding it in memory."""
    reader = _read(relation)
    stream.write("[")
    for number, row in enumerate(_rows(reader)):
        entry = {column: _plain(value) for column, value in zip(reader.schema.names, row, strict=True)}
        stream.write(("," if number else "") + "\n" + json.dumps(entry, default=str))
    stream.write("\n]\n")


def write_csv(relation: "DuckDBPyRelation", stream: TextIO) -> None:
    """Write a query's result as CSV with a header; nulls are empty."""
    reader = _read(relation)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(reader.schema.names)
    writer.writerows(_rows(reader))


def write_parquet(relation: "DuckDBPyRelation", path: Path) -> int:
    """Write a query's result as Parquet and return the number of rows."""
    reader = _read(relation)
    num_rows = 0
    with (
        Store(path.parent).commit(path.name) as file,
        pq.ParquetWriter(file, reader.schema, compression="zstd") as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


def _read(relation: "DuckDBPyRelation") -> pa.RecordBatchReader:
    """Stream a query's result: memory stays at a batch."""
    return pa.RecordBatchReader.from_stream(relation)


def _rows(reader: pa.RecordBatchReader) -> Iterator[tuple[object, ...]]:
    for batch in reader:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def cell(value: object) -> str:
    """Return a value as a table shows it, cut off where it is long."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _with_errors(summary: str, messages: Mapping[str, int]) -> RenderableType:
    errors = [(message, count) for message, count in messages.items() if message != STATUS_SUCCESS]
    if not errors:
        return summary
    table = make_table("error", right=("samples",))
    for message, count in errors[:MAX_ERRORS]:
        table.add_row(escape(message), f"{count:,}")
    return Group(summary, "", table)


def make_table(*left: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table in the house's form, with columns of text and then of numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(metric: str, value: float) -> str:
    return f"{value:,.0f}" if metric.startswith("num_") else f"{value:.4f}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"
