"""Takes samples out of a pool's own files: annotations, shards with their tars and statistics, planned rows."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.fetch.ingest import load_plans
from curate.forget_files import Eraser, Mask, empty_rows
from curate.forgotten import ERROR, PLANNED_COLUMNS, bury, is_in
from curate.store import Pool
from schemas.annotation import ERROR_COLUMN, UID_COLUMN
from schemas.sample import STATUS_FAILED_DOWNLOAD, STATUS_FAILED_RESIZE, STATUS_FORGOTTEN, STATUS_SUCCESS, shard_name

_ANNOTATION_ROW = {UID_COLUMN: ..., ERROR_COLUMN: ERROR}


def annotation_files(pool: Pool, shard: int) -> Iterator[str]:
    """Yield the annotations of a shard, of every operator and every fingerprint."""
    for operator in pool.list_names("annotations"):
        if operator.endswith(".json"):
            continue
        for fingerprint in pool.list_names(f"annotations/{operator}"):
            path = f"annotations/{operator}/{fingerprint}/{shard_name(shard)}.parquet"
            if pool.exists(path):
                yield path


def forget_in_annotations(eraser: Eraser, pool: Pool, shard: int, uids: frozenset[str]) -> None:
    """Empty the rows of samples in every annotation of a shard; the rows stay, with the error `forgotten`, and so does the header."""

    def is_told(table: pa.Table) -> Mask:
        is_old = pc.fill_null(pc.not_equal(table[ERROR_COLUMN], ERROR), True)
        found: Mask = is_in(table[UID_COLUMN], uids) & np.array(is_old.to_numpy(), dtype=bool)
        return found

    for path in annotation_files(pool, shard):
        if not eraser.is_dry:
            pool.remove_abandoned(path.rpartition("/")[0])
        columns = [UID_COLUMN, ERROR_COLUMN]
        eraser.parquet(pool, path, columns, is_told, lambda table, mask: empty_rows(table, mask, _ANNOTATION_ROW))


def forget_in_shard(eraser: Eraser, pool: Pool, shard: int, uids: frozenset[str]) -> None:
    """Empty the rows of samples in a shard, and take their members out of its tar.

    The Parquet goes first: in between the tar holds more than it tells, never less, as where `winnow retry` writes a shard.
    """
    if not eraser.is_dry:
        pool.remove_abandoned("shards")
    header = pool.shard_header(shard)
    path = pool.shard_parquet(shard)
    before = pool.read_table(path, ["uid", "key"])
    is_gone = is_in(before[UID_COLUMN], uids)
    gone = before["uid"].filter(pa.array(is_gone)).to_pylist()
    keys = frozenset(key for key in before["key"].filter(pa.array(is_gone)).to_pylist() if key is not None)
    eraser.parquet(
        pool,
        path,
        ["uid", "status"],
        lambda table: is_in(table[UID_COLUMN], uids) & _is_told(table),
        lambda table, mask: bury(table, mask, keep=PLANNED_COLUMNS),
    )
    if header.tar:
        _leave_tar(eraser, header.tar, len(gone))
        return
    eraser.tar(pool, pool.shard_tar(header), keys, gone)
    _count(eraser, pool, shard, gone)


def forget_in_plans(eraser: Eraser, pool: Pool, paths: Sequence[str], uids: frozenset[str]) -> None:
    """Empty the planned rows of samples, in the plans' files `paths`: those of unfinished shards keep what tells where to skip."""
    committed = set(pool.shards())
    finished = {
        plan.rows_path(shard) for plan in load_plans(pool).values() for shard in plan.shards if shard in committed
    }
    for path in paths:
        names = pool.read_footer(path).schema.to_arrow_schema().names
        columns = ["uid", "url", *(["source_file_"] if path in finished and "source_file_" in names else [])]
        keep = {"keep": PLANNED_COLUMNS} if path in finished else {}

        def is_told(table: pa.Table) -> Mask:
            has_any = [table[name].is_valid().to_numpy() for name in table.column_names[1:]]
            found: Mask = is_in(table[UID_COLUMN], uids) & np.logical_or.reduce(has_any)
            return found

        eraser.parquet(
            pool,
            path,
            columns,
            is_told,
            lambda table, mask, keep=keep: bury(table, mask, **keep),  # type: ignore[misc]
        )


def read_texts(pool: Pool, shard: int, uids: frozenset[str]) -> set[str]:
    """Return every text that annotations of a shard hold of samples: what models said of them."""
    found: set[str] = set()
    for path in annotation_files(pool, shard):
        schema = pool.read_footer(path).schema.to_arrow_schema()
        names = [
            field.name for field in schema if _is_text(field.type) and field.name not in (UID_COLUMN, ERROR_COLUMN)
        ]
        if not names:
            continue
        table = pool.read_table(path, [UID_COLUMN, *names])
        table = table.filter(pa.array(is_in(table[UID_COLUMN], uids)))
        for name in names:
            for value in table[name].to_pylist():
                found.update(text.strip() for text in ([value] if isinstance(value, str) else value or []) if text)
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or (pa.types.is_list(kind) and pa.types.is_string(kind.value_type)))


def _is_told(table: pa.Table) -> Mask:
    """Tell of which rows more is there than that they are forgotten."""
    return np.array(pc.fill_null(pc.not_equal(table["status"], STATUS_FORGOTTEN), True).to_numpy(), dtype=bool)


def _leave_tar(eraser: Eraser, tar: str, num_samples: int) -> None:
    eraser.journal.leave(
        tar,
        f"it was imported where it lies and is not the pool's; it may hold the pictures of {num_samples} of its samples still",
        "take them out of the tar and of the files beside it, or remove it; the pool does not read them any more",
    )


def _count(eraser: Eraser, pool: Pool, shard: int, gone: Sequence[str]) -> None:
    """Bring the counts in `_stats.json` up to date; its clocks stay."""
    path = f"shards/{shard_name(shard)}_stats.json"
    if eraser.is_dry or not pool.exists(path):
        return
    content: dict[str, Any] = json.loads(pool.read_bytes(path))
    table = pool.read_table(pool.shard_parquet(shard), ["status", "error_message"])
    statuses = Counter(table["status"].to_pylist())
    messages = Counter(message or STATUS_SUCCESS for message in table["error_message"].to_pylist())
    counts = {
        "successes": statuses[STATUS_SUCCESS],
        "failed_to_download": statuses[STATUS_FAILED_DOWNLOAD],
        "failed_to_resize": statuses[STATUS_FAILED_RESIZE],
        "status_dict": dict(messages.most_common()),
    }
    updated = {name: counts.get(name, value) for name, value in content.items()}
    if updated != content:
        eraser.replace(pool, path, gone, json.dumps(updated, indent=4).encode())
