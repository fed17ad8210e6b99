"""Writes what became of every row: the ledger of the whole pool, and the table of the rows kept.

The columns that come from SQL are a few bytes per row and are held in memory; uids and URLs, the bulk, stream from the shards into the
ledger without passing through SQL: some threads read ahead while one encodes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.store import Pool, ShardHeader
from schemas.errors import InputError
from schemas.progress import Progress
from schemas.sample import shard_name
from schemas.selection import LEDGER_FILE, LEDGER_SCHEMA, SELECTED_FILE, SELECTED_SCHEMA

_ROW_GROUP_ROWS = 1 << 18
_SELECTED_ROWS = 1 << 20
_READERS = 2
# Level 1 halves the file; higher levels save little on random uids and cost seconds per ten million rows.
_COMPRESSION_LEVEL = 1

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What SQL found, one entry per row in pool order: a bit per failed rule (0: kept), and the weight of the rows kept."""

    rules: Sequence[str]
    mask: npt.NDArray[np.unsignedinteger]
    weight: npt.NDArray[np.float64]


def write_ledger(
    pool: Pool,
    folder: str,
    shards: Sequence[ShardHeader],
    outcomes: Outcomes,
    metadata: dict[bytes, bytes],
    progress: Progress,
) -> None:
    """Write `ledger.parquet` and `selected.parquet` into `folder`: the same bytes for the same pool and outcomes."""
    # Columns of few values are handed over as dictionaries and stored as plain text columns: no Arrow schema in the file says otherwise.
    kinds = {
        "status": pa.dictionary(pa.int32(), pa.string()),
        "first_failing_rule": pa.dictionary(pa.int8(), pa.string()),
    }
    kinds["failing_rules"] = pa.list_(pa.dictionary(pa.int8(), pa.string()))
    schema = pa.schema([pa.field(field.name, kinds.get(field.name, field.type)) for field in LEDGER_SCHEMA])
    kept_uids: list[npt.NDArray[np.uint64]] = []
    progress.start("select", len(outcomes.mask), "samples")
    try:
        with (
            pool.commit(f"{folder}/{SELECTED_FILE}") as selected_file,
            pool.commit(f"{folder}/{LEDGER_FILE}") as ledger_file,
            _writer(selected_file, SELECTED_SCHEMA, metadata) as selected,
            _writer(ledger_file, schema, metadata, store_schema=False) as ledger,
            ThreadPoolExecutor(_READERS) as readers,
        ):
            waiting: list[pa.Table] = []

            def prepare(group: _Group) -> tuple[pa.Table, pa.Table]:
                table = _read_group(pool, group)
                return _ledger_rows(table, group, outcomes, schema), _selected_rows(table, group, outcomes)

            for rows, kept_rows in _run_ahead(readers, prepare, _groups(shards)):
                ledger.write_table(rows)
                waiting.append(kept_rows)
                kept_uids.append(_uid_words(waiting[-1]["uid"]))
                if sum(part.num_rows for part in waiting) >= _SELECTED_ROWS:
                    selected.write_table(pa.concat_tables(waiting))
                    waiting = []
                progress.advance(rows.num_rows)
            selected.write_table(pa.concat_tables([SELECTED_SCHEMA.empty_table(), *waiting]))
    finally:
        progress.close()
    _check_unique(pool, folder, kept_uids)


@dataclass(frozen=True)
class _Group:
    """Consecutive shards that make one row group; `start` is the pool position of their first row."""

    headers: Sequence[ShardHeader]
    start: int

    @property
    def end(self) -> int:
        return self.start + sum(header.num_rows for header in self.headers)


def _groups(shards: Sequence[ShardHeader]) -> Iterator[_Group]:
    headers: list[ShardHeader] = []
    start = num_rows = 0
    for header in shards:
        headers.append(header)
        num_rows += header.num_rows
        if num_rows >= _ROW_GROUP_ROWS:
            yield _Group(headers, start)
            headers, start, num_rows = [], start + num_rows, 0
    if headers:
        yield _Group(headers, start)


def _read_group(pool: Pool, group: _Group) -> pa.Table:
    tables = []
    for header in group.headers:
        with pool.open(pool.shard_parquet(header.shard)) as file:
            # The statuses are three words; as a dictionary they cost nothing.
            parquet = pq.ParquetFile(file, read_dictionary=["status"])
            tables.append(parquet.read(columns=["uid", "url", "status"], use_threads=False))
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).unify_dictionaries()


def _run_ahead(
    workers: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield what `function` makes of each item, in order, with a few calls under way: memory stays bounded."""
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(workers.submit(function, item))
        if len(running) > _READERS:
            yield running.popleft().result()
    for future in running:
        yield future.result()


def _ledger_rows(table: pa.Table, group: _Group, outcomes: Outcomes, schema: pa.Schema) -> pa.Table:
    mask = outcomes.mask[group.start : group.end]
    kept = mask == 0
    names = pa.array(outcomes.rules, pa.string())
    rows, rules = np.nonzero((mask[:, None] >> np.arange(len(outcomes.rules), dtype=mask.dtype)) & mask.dtype.type(1))
    ends = np.zeros(len(mask) + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=len(mask)), out=ends[1:])
    codes = rules.astype(np.int8)
    first = np.zeros(len(mask), np.int8)
    first[~kept] = codes[ends[:-1][~kept]]
    failing = pa.DictionaryArray.from_arrays(pa.array(codes), names)
    columns = [
        table["uid"],
        table["url"],
        table["status"],
        pa.array(kept),
        pa.DictionaryArray.from_arrays(pa.array(first, mask=kept), names),
        pa.ListArray.from_arrays(pa.array(ends), failing),
        pa.array(outcomes.weight[group.start : group.end], mask=~kept),
    ]
    return pa.table(columns, schema=schema)


def _selected_rows(table: pa.Table, group: _Group, outcomes: Outcomes) -> pa.Table:
    (kept,) = np.nonzero(outcomes.mask[group.start : group.end] == 0)
    sizes = [header.num_rows for header in group.headers]
    starts = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)[kept]
    shards = np.repeat([header.shard for header in group.headers], sizes)[kept]
    columns = [
        table["uid"].take(pa.array(kept)),
        pa.array(shards.astype(np.int32)),
        pa.array((kept - starts).astype(np.int32)),
        pa.array(outcomes.weight[group.start : group.end][kept]),
    ]
    return pa.table(columns, schema=SELECTED_SCHEMA)


def _uid_words(uids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each uid, for finding duplicates without holding the uids."""
    text = pc.cast(uids.combine_chunks(), pa.large_string())
    if len(text) == 0 or pc.any(pc.not_equal(pc.binary_length(text), 32)).as_py():
        return np.zeros(0, np.uint64)
    data = np.frombuffer(text.buffers()[2], np.uint8)[text.offset * 32 :][: 32 * len(text)]
    words = data.view(np.uint64).reshape(-1, 4)
    mixed: npt.NDArray[np.uint64] = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) + words[:, 1]
    return (
        (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + words[:, 2] + (words[:, 3] << np.uint64(1))
    )


def _check_unique(pool: Pool, folder: str, words: Sequence[npt.NDArray[np.uint64]]) -> None:
    """Raise where a uid was kept twice; the pool breaks its promise then, and sampling by uid would draw both alike."""
    together = np.concatenate(words) if words else np.zeros(0, np.uint64)
    together.sort()
    if not np.any(together[1:] == together[:-1]):
        return
    table = pool.read_table(f"{folder}/{SELECTED_FILE}", ["uid", "shard", "row"])
    seen: dict[str, tuple[int, int]] = {}
    for uid, shard, row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if uid in seen:
            first = seen[uid]
            raise InputError(
                f"uid {uid} is in shard {shard_name(first[0])} row {first[1]} and in shard {shard_name(shard)} row {row} of {pool.root}: "
                "the same rows were brought in twice; remove one of the two shards (its .tar, .parquet and _stats.json)"
            )
        seen[uid] = (shard, row)


def _writer(
    file: object, schema: pa.Schema, metadata: dict[bytes, bytes], *, store_schema: bool = True
) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema.with_metadata(metadata),
        compression="zstd",
        compression_level=_COMPRESSION_LEVEL,
        # Uids and URLs hardly repeat: a dictionary of them is work thrown away.
        use_dictionary=["status", "first_failing_rule", "failing_rules.list.element", "shard"],
        write_statistics=["shard", "row"],
        store_schema=store_schema,
    )
