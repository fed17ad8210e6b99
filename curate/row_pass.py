"""One pass over one shard: read once, decode once, every missing row operator, one file committed for each.

Without a model the whole shard is one task (`annotate_shard`). With one, `stream_shard` reads, decodes, runs the light operators and
prepares what the models need, and a consumer made by `load_consumer` runs the models on what it yields, in another process.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from curate.annotation_file import OriginKey, StoredColumns, write_annotations
from curate.columns import Batches, Input, Output, gather, scatter
from curate.operator import Annotate, Prepare, ShardOperator
from curate.plan import Origin, Planned
from curate.shard_reader import Chunk, read_chunks
from curate.store import Pool, ShardHeader

# What `load` and `prepare` made, by fingerprint: built once for all the shards that a process works on.
_loaded: dict[str, Annotate] = {}
_prepares: dict[str, Prepare | None] = {}


@dataclass(frozen=True, kw_only=True)
class RowPass:
    """Row operators that run together, inputs before their readers."""

    pool: Pool
    plan: tuple[Planned, ...]
    pool_digest: str

    def missing(self, header: ShardHeader) -> list[Planned]:
        """Return the operators that have no current file for the shard."""
        return [planned for planned in self.plan if is_missing(self.pool, planned, header, self.pool_digest)]


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What was done for a shard: the error rows of each operator that ran, by fingerprint."""

    shard: int
    num_rows: int
    seconds: float
    num_errors: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class StreamItem:
    """A chunk on its way to the models: their inputs, as batches where these could be made, else as columns."""

    uids: pa.Array
    inputs: dict[OriginKey, Input]
    batches: dict[str, Batches]


@dataclass
class _ChunkInputs:
    """Finds the inputs of operators in a chunk: its own columns, stored annotations, what other operators just returned."""

    num_rows: int
    known: dict[OriginKey, Input] = field(default_factory=dict)
    chunk: Chunk | None = None

    def find(self, origin: Origin) -> Input:
        key = origin_key(origin)
        if key not in self.known:
            self.known[key] = self._read(origin)
        return self.known[key]

    def add(self, planned: Planned, output: Output) -> None:
        for name in output.columns:
            self.known["annotation", planned.fingerprint, name] = output.as_input(name)

    def batches(self, planned: Planned) -> Batches:
        inputs = {column: self.find(origin) for column, origin in planned.origins.items()}
        return gather(planned.operator, inputs, self.num_rows)

    def _read(self, origin: Origin) -> Input:
        assert self.chunk is not None, f"{origin} was not sent along"
        if origin.kind == "sample":
            return Input.from_column(self.chunk.samples.column(origin.column))
        pictures = self.chunk.pictures if origin.kind == "image" else self.chunk.files
        assert pictures is not None
        return Input.from_errors(pictures.values, pictures.errors)


def is_missing(pool: Pool, planned: Planned, header: ShardHeader, pool_digest: str) -> bool:
    """Tell whether an operator has no current file for a shard."""
    digest = pool_digest if planned.follows_pool else ""
    return bool(pool.missing(planned.operator.name, planned.fingerprint, {header.shard: header}, digest))


def annotate_shard(row_pass: RowPass, header: ShardHeader) -> ShardReport:
    """Run what is missing for a shard in this process and commit it."""
    started = time.monotonic()
    missing = row_pass.missing(header)
    with write_annotations(row_pass.pool, missing, header, row_pass.pool_digest) as writers:
        for chunk, inputs in _read_inputs(row_pass.pool, header, missing):
            for planned in missing:
                output = _run(planned, _prepare(planned, inputs.batches(planned)))
                inputs.add(planned, output)
                writers[planned.fingerprint].add(_uids(chunk), output)
    errors = {fingerprint: writer.num_errors for fingerprint, writer in writers.items()}
    return ShardReport(
        shard=header.shard, num_rows=header.num_rows, seconds=time.monotonic() - started, num_errors=errors
    )


def stream_shard(row_pass: RowPass, header: ShardHeader) -> Iterator[StreamItem | ShardReport]:
    """Run the light operators of a shard and yield what the models need, chunk by chunk; last comes the report of the light ones."""
    started = time.monotonic()
    missing = row_pass.missing(header)
    late = split_late(missing)
    early = [planned for planned in missing if planned not in late]
    if missing:
        with write_annotations(row_pass.pool, early, header, row_pass.pool_digest) as writers:
            for chunk, inputs in _read_inputs(row_pass.pool, header, missing):
                for planned in early:
                    output = _run(planned, _prepare(planned, inputs.batches(planned)))
                    inputs.add(planned, output)
                    writers[planned.fingerprint].add(_uids(chunk), output)
                if late:
                    yield _make_item(chunk, inputs, late)
        errors = {fingerprint: writer.num_errors for fingerprint, writer in writers.items()}
    else:
        errors = {}
    yield ShardReport(
        shard=header.shard, num_rows=header.num_rows, seconds=time.monotonic() - started, num_errors=errors
    )


def load_consumer(row_pass: RowPass) -> Callable[[ShardHeader, Iterator[StreamItem | ShardReport]], ShardReport]:
    """Return the function that runs the models of a pass on what `stream_shard` yields; one model call at a time."""
    return functools.partial(_consume, row_pass, threading.Lock())


def split_late(missing: Sequence[Planned]) -> list[Planned]:
    """Return the operators that run beside the models: those with one, and whatever reads their columns."""
    late: list[Planned] = []
    for planned in missing:
        if planned.has_model or any(other.fingerprint in planned.upstream for other in late):
            late.append(planned)
    return late


def origin_key(origin: Origin) -> OriginKey:
    """Return what names a column within a chunk."""
    return origin.kind, origin.fingerprint, origin.column


def _consume(
    row_pass: RowPass, lock: threading.Lock, header: ShardHeader, items: Iterator[StreamItem | ShardReport]
) -> ShardReport:
    late = split_late(row_pass.missing(header))
    report: ShardReport | None = None
    with write_annotations(row_pass.pool, late, header, row_pass.pool_digest) as writers:
        for item in items:
            if isinstance(item, ShardReport):
                report = item
                continue
            inputs = _ChunkInputs(num_rows=len(item.uids), known=dict(item.inputs))
            for planned in late:
                batches = item.batches.get(planned.fingerprint) or _prepare(planned, inputs.batches(planned))
                with lock:
                    output = _run(planned, batches)
                inputs.add(planned, output)
                writers[planned.fingerprint].add(item.uids, output)
        assert report is not None, "the stream ended without its report"
    errors = {fingerprint: writer.num_errors for fingerprint, writer in writers.items()}
    return ShardReport(
        shard=header.shard, num_rows=header.num_rows, seconds=report.seconds, num_errors=report.num_errors | errors
    )


def _read_inputs(pool: Pool, header: ShardHeader, missing: Sequence[Planned]) -> Iterator[tuple[Chunk, _ChunkInputs]]:
    """Yield the shard's chunks with the inputs that do not come from an operator that is running now."""
    running = {planned.fingerprint for planned in missing}
    origins = [
        origin for planned in missing for origin in planned.origins.values() if origin.fingerprint not in running
    ]
    kinds = {origin.kind for origin in origins}
    columns = [origin.column for origin in origins if origin.kind == "sample"]
    stored_origins = [origin for origin in origins if origin.kind == "annotation"]
    if not missing:
        return
    with StoredColumns(pool, header, stored_origins) as stored:
        chunks = read_chunks(pool, header, columns, needs_pictures="image" in kinds, needs_files="image_file" in kinds)
        for chunk in chunks:
            yield chunk, _ChunkInputs(num_rows=chunk.num_rows, known=stored.take(chunk.num_rows), chunk=chunk)


def _make_item(chunk: Chunk, inputs: _ChunkInputs, late: Iterable[Planned]) -> StreamItem:
    produced_late = {planned.fingerprint for planned in late}
    batches: dict[str, Batches] = {}
    columns: dict[OriginKey, Input] = {}
    for planned in late:
        if planned.upstream.isdisjoint(produced_late):
            batches[planned.fingerprint] = _prepare(planned, inputs.batches(planned))
            continue
        for origin in planned.origins.values():
            if origin.fingerprint not in produced_late:
                columns[origin_key(origin)] = inputs.find(origin)
    return StreamItem(uids=_uids(chunk), inputs=columns, batches=batches)


def _prepare(planned: Planned, batches: Batches) -> Batches:
    """Do the CPU half of an operator, where it has one; what it returns may have other columns, never other rows."""
    operator = planned.operator
    assert isinstance(operator, ShardOperator)
    if planned.fingerprint not in _prepares:
        _prepares[planned.fingerprint] = operator.prepare()
    prepare = _prepares[planned.fingerprint]
    if prepare is None:
        return batches
    tables = [prepare(table) for table in batches.tables]
    return Batches(tables=tables, rows=batches.rows, errors=batches.errors)


def _run(planned: Planned, batches: Batches) -> Output:
    operator = planned.operator
    assert isinstance(operator, ShardOperator)
    if planned.fingerprint not in _loaded:
        _loaded[planned.fingerprint] = operator.load()
    annotate = _loaded[planned.fingerprint]
    return scatter(operator, batches, [annotate(table) for table in batches.tables])


def _uids(chunk: Chunk) -> pa.Array:
    return chunk.samples.column("uid").combine_chunks()
