"""One pass over one shard: read once, decode once, every missing row operator, one file committed for each.

Without a model the whole shard is one task (`annotate_shard`). With one, `stream_shard` reads, decodes, runs the light operators and
prepares what the models need, and a consumer made by `load_consumer` runs the models on what it yields, in another process.
"""

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pyarrow as pa

from curate.annotation_file import OriginKey, StoredColumns, write_annotations
from curate.columns import Batches, Input, Output, gather, scatter
from curate.lookahead import Lookahead
from curate.operator import IMAGE_COLUMN, IMAGE_LUMA_COLUMN, Annotate, Operator, Prepare, ShardOperator
from curate.plan import Origin, Planned
from curate.shard_reader import Chunk, read_chunks
from curate.store import Pool, ShardHeader
from schemas.errors import ContractError

# What `load` and `prepare` made, by fingerprint: built once for all the shards that a process works on.
_loaded: dict[str, Annotate] = {}
_prepares: dict[str, Prepare | None] = {}
_load_lock = threading.Lock()
# Seconds in each operator, by fingerprint.
Spent = defaultdict[str, float]
# While the columns of some chunks are made, a GPU computes the next.
_GPU_CALLS = 2
# The memory of the chunks that models get together on a GPU; a chunk that is larger comes alone. At a time two groups are computed, and
# one is being put together for each shard in flight.
GROUP_BYTES = 256 << 20
_PICTURE_KEYS: dict[str, OriginKey] = {kind: (kind, "", kind) for kind in (IMAGE_COLUMN, IMAGE_LUMA_COLUMN)}


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
    # Seconds in each operator, by fingerprint, loading left out; what else took time is reading and decoding.
    spent: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StreamItem:
    """A chunk on its way to the models: their inputs, as batches where these could be made, else as columns."""

    uids: pa.Array
    inputs: dict[OriginKey, Input]
    batches: dict[str, Batches]

    @property
    def num_bytes(self) -> int:
        """The memory that the inputs and the batches take."""
        tables = [table for batches in self.batches.values() for table in batches.tables]
        return int(sum(data.nbytes for data in (*(found.values for found in self.inputs.values()), *tables)))


@dataclass
class _Inputs:
    """Finds the inputs of operators in some rows: given ones, those that `read` finds, and what operators just returned."""

    num_rows: int
    read: Callable[[Origin], Input]
    known: dict[OriginKey, Input] = field(default_factory=dict)
    spent: Spent = field(default_factory=lambda: defaultdict(float))

    def find(self, origin: Origin) -> Input:
        key = origin_key(origin)
        if key not in self.known:
            self.known[key] = self.read(origin)
        return self.known[key]

    def add(self, planned: Planned, output: Output) -> None:
        for name in output.columns:
            self.known["annotation", planned.fingerprint, name] = output.as_input(name)

    def batches(self, planned: Planned) -> Batches:
        inputs = {column: self.find(origin) for column, origin in planned.origins.items()}
        return gather(planned.operator, inputs, self.num_rows)


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """The missing operators of a shard in the order in which a chunk meets them.

    Pictures are decoded a few at a time and let go, so what reads them runs on those few rows; the rest runs on whole chunks.
    """

    before: list[Planned]
    beside_pictures: list[Planned]
    after: list[Planned]
    late: list[Planned]

    @classmethod
    def of(cls, missing: Sequence[Planned]) -> "_Stages":
        late = split_late(missing)
        early = [planned for planned in missing if planned not in late]
        behind: set[str] = set()  # pictures decide their columns
        for planned in early:
            if _reads_pictures(planned) or not planned.upstream.isdisjoint(behind):
                behind.add(planned.fingerprint)
        wanted: set[str] = set()  # something that reads pictures needs them
        for planned in reversed(missing):
            if _reads_pictures(planned) or planned.fingerprint in wanted:
                wanted |= {planned.fingerprint, *planned.upstream}
        return cls(
            before=[p for p in early if p.fingerprint not in behind],
            beside_pictures=[p for p in early if p.fingerprint in behind and p.fingerprint in wanted],
            after=[p for p in early if p.fingerprint in behind and p.fingerprint not in wanted],
            late=late,
        )

    @property
    def early(self) -> list[Planned]:
        return [*self.before, *self.beside_pictures, *self.after]

    @property
    def late_pictures(self) -> list[Planned]:
        return [planned for planned in self.late if _reads_pictures(planned)]


def is_missing(pool: Pool, planned: Planned, header: ShardHeader, pool_digest: str) -> bool:
    """Tell whether an operator has no current file for a shard."""
    digest = pool_digest if planned.follows_pool else ""
    return bool(pool.missing(planned.operator.name, planned.fingerprint, {header.shard: header}, digest))


def annotate_shard(row_pass: RowPass, header: ShardHeader) -> ShardReport:
    """Run what is missing for a shard in this process and commit it; nothing of it may need a model's actor."""
    *_, report = stream_shard(row_pass, header)
    assert isinstance(report, ShardReport)
    return report


def stream_shard(row_pass: RowPass, header: ShardHeader) -> Iterator[StreamItem | ShardReport]:
    """Run the light operators of a shard and yield what the models need, chunk by chunk; last comes the report of the light ones."""
    started = time.monotonic()
    missing = row_pass.missing(header)
    stages = _Stages.of(missing)
    spent: Spent = defaultdict(float)
    with write_annotations(row_pass.pool, stages.early, header, row_pass.pool_digest) as writers:
        for chunk, inputs in _read_inputs(row_pass.pool, header, missing, spent):
            uids = chunk.samples.column("uid").combine_chunks()
            prepared = _run_early(stages, chunk, inputs, lambda p, output: writers[p.fingerprint].add(uids, output))  # noqa: B023
            if stages.late:
                yield _make_item(uids, inputs, stages.late, prepared)
    errors = {fingerprint: writer.num_errors for fingerprint, writer in writers.items()}
    yield ShardReport(
        shard=header.shard,
        num_rows=header.num_rows,
        seconds=time.monotonic() - started,
        num_errors=errors,
        spent=dict(spent),
    )


def load_consumer(row_pass: RowPass) -> Callable[[ShardHeader, Iterator[StreamItem | ShardReport]], ShardReport]:
    """Return the function that runs the models of a pass on what `stream_shard` yields.

    One model call at a time, but for operators that ask for several, or may be called twice at once on a GPU; then chunks, of one shard
    or more, are worked on side by side. An operator with a size of its own for GPUs gets several chunks together there.
    """
    num_chunks = max((_num_calls(p.operator) for p in row_pass.plan if p.has_model), default=1)
    lookahead = Lookahead(functools.partial(_run_late, threading.Lock()), num_chunks)
    return functools.partial(_consume, row_pass, lookahead)


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


_Group = list[StreamItem]
_Late = tuple[list[Planned], _Group | ShardReport]
# The uids and the outputs of each chunk, by fingerprint: what went in is not kept.
_LateResult = tuple[list[tuple[pa.Array, dict[str, Output]]] | ShardReport, Spent]


def _consume(
    row_pass: RowPass,
    lookahead: Lookahead[_Late, _LateResult],
    header: ShardHeader,
    items: Iterator[StreamItem | ShardReport],
) -> ShardReport:
    late = split_late(row_pass.missing(header))
    report: ShardReport | None = None
    spent: Spent = defaultdict(float)
    with write_annotations(row_pass.pool, late, header, row_pass.pool_digest) as writers:
        for found, seconds in lookahead.map((late, group) for group in _group(items, _group_rows(late))):
            _add(spent, seconds)
            if isinstance(found, ShardReport):
                report = found
                continue
            for uids, outputs in found:
                for fingerprint, output in outputs.items():
                    writers[fingerprint].add(uids, output)
        assert report is not None, "the stream ended without its report"
    errors = {fingerprint: writer.num_errors for fingerprint, writer in writers.items()}
    _add(spent, report.spent)
    return replace(report, num_errors=report.num_errors | errors, spent=dict(spent))


def _group_rows(late: Sequence[Planned]) -> int:
    """Return up to how many rows the models are to get together; 0: each chunk by itself."""
    # A program elsewhere is kept busy by many chunks at a time, which would be many groups.
    if any(_num_calls(planned.operator) > _GPU_CALLS for planned in late):
        return 0
    return max((_gpu_batch_size(planned.operator) for planned in late), default=0)


def _group(items: Iterable[StreamItem | ShardReport], max_rows: int) -> Iterator[_Group | ShardReport]:
    """Yield consecutive chunks together, as many as `max_rows` and GROUP_BYTES allow and at least one, then the report."""
    group: _Group = []
    num_rows = num_bytes = 0
    for item in items:
        if isinstance(item, ShardReport):
            if group:
                yield group
            yield item
            return
        more_rows, more_bytes = len(item.uids), item.num_bytes
        if group and (num_rows + more_rows > max_rows or num_bytes + more_bytes > GROUP_BYTES):
            yield group
            group, num_rows, num_bytes = [], 0, 0
        group.append(item)
        num_rows, num_bytes = num_rows + more_rows, num_bytes + more_bytes
        if num_rows >= max_rows or num_bytes >= GROUP_BYTES:  # nothing more would fit: not to wait for it
            yield group
            group, num_rows, num_bytes = [], 0, 0


def _run_late(lock: threading.Lock, work: _Late) -> _LateResult:
    """Run the models, and what reads their columns, on some chunks."""
    late, group = work
    spent: Spent = defaultdict(float)
    if isinstance(group, ShardReport):
        return group, spent
    chunks = [
        _Inputs(num_rows=len(item.uids), read=_was_not_sent, known=dict(item.inputs), spent=spent) for item in group
    ]
    found: list[tuple[pa.Array, dict[str, Output]]] = [(item.uids, {}) for item in group]
    for planned in late:
        outputs = _run_group(planned, group, chunks, lock)
        for inputs, (_, own), output in zip(chunks, found, outputs, strict=True):
            own[planned.fingerprint] = output
            inputs.add(planned, output)
    return found, spent


def _run_group(
    planned: Planned, group: Sequence[StreamItem], chunks: Sequence[_Inputs], lock: threading.Lock
) -> list[Output]:
    """Return an operator's output for each chunk.

    Only one that gets larger batches on a GPU sees chunks together. The others get the batches that they have anywhere, so that what they
    write does not depend on what runs beside them.
    """
    turn = nullcontext() if _num_calls(planned.operator) > 1 else lock
    spent = chunks[0].spent
    parts = (
        item.batches.get(planned.fingerprint) or _prepare(planned, inputs.batches(planned), spent)
        for item, inputs in zip(group, chunks, strict=True)
    )
    outputs = []
    size = _gpu_batch_size(planned.operator)
    if not size:
        for part in parts:
            with turn:
                outputs.append(_run(planned, part, spent))
        return outputs
    whole = Batches.concat(list(parts), size)
    with turn:
        output = _run(planned, whole, spent)
    start = 0
    for inputs in chunks:
        outputs.append(output.slice(start, start + inputs.num_rows))
        start += inputs.num_rows
    return outputs


def _read_inputs(
    pool: Pool, header: ShardHeader, missing: Sequence[Planned], spent: Spent
) -> Iterator[tuple[Chunk, _Inputs]]:
    """Yield the shard's chunks with the inputs that do not come from an operator that is running now."""
    if not missing:
        return
    running = {planned.fingerprint for planned in missing}
    origins = [
        origin for planned in missing for origin in planned.origins.values() if origin.fingerprint not in running
    ]
    columns = [origin.column for origin in origins if origin.kind == "sample"]
    kinds = {origin.kind for origin in origins}
    needs_tar, needs_files = any(kind.startswith("image") for kind in kinds), "image_file" in kinds
    with StoredColumns(pool, header, [origin for origin in origins if origin.kind == "annotation"]) as stored:
        for chunk in read_chunks(pool, header, columns, needs_tar=needs_tar, needs_files=needs_files):
            read = functools.partial(_read_origin, chunk)
            yield chunk, _Inputs(num_rows=chunk.num_rows, read=read, known=stored.take(chunk.num_rows), spent=spent)


def _read_origin(chunk: Chunk, origin: Origin) -> Input:
    if origin.kind == "image_file":
        return chunk.read_files()
    if origin.kind == "image_file_bytes":
        return chunk.read_file_sizes()
    assert origin.kind == "sample", f"{origin} is not there yet"
    return Input.from_column(chunk.samples.column(origin.column))


def _was_not_sent(origin: Origin) -> Input:
    raise AssertionError(f"{origin} was not sent along")


def _run_early(
    stages: _Stages, chunk: Chunk, inputs: _Inputs, write: Callable[[Planned, Output], None]
) -> dict[str, Batches]:
    """Run a chunk's light operators and hand over their outputs; return what the models that see pictures are to work on."""

    def finish(planned: Planned, output: Output) -> None:
        inputs.add(planned, output)
        write(planned, output)

    for planned in stages.before:
        finish(planned, _run(planned, _prepare(planned, inputs.batches(planned), inputs.spent), inputs.spent))
    prepared: dict[str, Batches] = {}
    if stages.beside_pictures or stages.late_pictures:
        outputs, prepared = _run_beside_pictures(stages, chunk, inputs)
        for planned in stages.beside_pictures:
            finish(planned, outputs[planned.fingerprint])
    for planned in stages.after:
        finish(planned, _run(planned, _prepare(planned, inputs.batches(planned), inputs.spent), inputs.spent))
    return prepared


def _run_beside_pictures(
    stages: _Stages, chunk: Chunk, inputs: _Inputs
) -> tuple[dict[str, Output], dict[str, Batches]]:
    outputs: dict[str, list[Output]] = {planned.fingerprint: [] for planned in stages.beside_pictures}
    produced_late = {planned.fingerprint for planned in stages.late}
    ready = [planned for planned in stages.late_pictures if planned.upstream.isdisjoint(produced_late)]
    prepared: dict[str, list[Batches]] = {planned.fingerprint: [] for planned in ready}
    kept: dict[str, list[Input]] = {}
    kinds = {origin.kind for p in (*stages.beside_pictures, *stages.late_pictures) for origin in p.origins.values()}
    for start, stop, pictures in chunk.decode(needs_colour="image" in kinds, needs_luma="image_luma" in kinds):
        read = functools.partial(_slice, inputs, start, stop)
        known = {_PICTURE_KEYS[kind]: found for kind, found in pictures.items()}
        block = _Inputs(num_rows=stop - start, read=read, known=known, spent=inputs.spent)
        for planned in stages.beside_pictures:
            output = _run(planned, _prepare(planned, block.batches(planned), block.spent), block.spent)
            block.add(planned, output)
            outputs[planned.fingerprint].append(output)
        for planned in ready:
            prepared[planned.fingerprint].append(_prepare(planned, block.batches(planned), block.spent))
        if len(ready) < len(stages.late_pictures):
            for kind, found in pictures.items():
                kept.setdefault(kind, []).append(found)
    inputs.known |= {_PICTURE_KEYS[kind]: Input.concat(parts) for kind, parts in kept.items()}
    batches = {p.fingerprint: Batches.concat(prepared[p.fingerprint], _batch_size(p)) for p in ready}
    return {fingerprint: Output.concat(parts) for fingerprint, parts in outputs.items()}, batches


def _slice(inputs: _Inputs, start: int, stop: int, origin: Origin) -> Input:
    return inputs.find(origin).slice(start, stop)


def _make_item(uids: pa.Array, inputs: _Inputs, late: Iterable[Planned], prepared: dict[str, Batches]) -> StreamItem:
    produced_late = {planned.fingerprint for planned in late}
    batches = dict(prepared)
    columns: dict[OriginKey, Input] = {}
    for planned in late:
        if planned.fingerprint in batches:
            continue
        if planned.upstream.isdisjoint(produced_late):
            batches[planned.fingerprint] = _prepare(planned, inputs.batches(planned), inputs.spent)
            continue
        for origin in planned.origins.values():
            if origin.fingerprint not in produced_late:
                columns[origin_key(origin)] = inputs.find(origin)
    return StreamItem(uids=uids, inputs=columns, batches=batches)


def _prepare(planned: Planned, batches: Batches, spent: Spent) -> Batches:
    """Do the CPU half of an operator, where it has one; what it returns may have other columns, never other rows."""
    operator = planned.operator
    assert isinstance(operator, ShardOperator)
    if planned.fingerprint not in _prepares:
        _prepares[planned.fingerprint] = operator.prepare()
    prepare = _prepares[planned.fingerprint]
    if prepare is None:
        return batches
    started = time.monotonic()
    tables = [prepare(table) for table in batches.tables]
    spent[planned.fingerprint] += time.monotonic() - started
    for before, after in zip(batches.tables, tables, strict=True):
        if before.num_rows != after.num_rows:
            raise ContractError(
                f"{operator.name} must prepare {before.num_rows} rows for {before.num_rows}, got {after.num_rows}"
            )
    return Batches(tables=tables, rows=batches.rows, errors=batches.errors)


def _run(planned: Planned, batches: Batches, spent: Spent) -> Output:
    operator = planned.operator
    assert isinstance(operator, ShardOperator)
    with _load_lock:
        if planned.fingerprint not in _loaded:
            _loaded[planned.fingerprint] = operator.load()
    annotate = _loaded[planned.fingerprint]
    started = time.monotonic()
    output = scatter(operator, batches, [annotate(table) for table in batches.tables])
    # Batches that wait at the same time for a program elsewhere, or for a GPU, share what it took.
    spent[planned.fingerprint] += (time.monotonic() - started) / _num_calls(operator)
    return output


def _gpu_batch_size(operator: Operator) -> int:
    """Return the rows of a call of an operator whose model runs on a GPU in this process; 0 where it does not, or knows no difference."""
    if not isinstance(operator, ShardOperator) or not operator.resources.gpu_batch_size:
        return 0
    from curate.models.staging import has_gpu

    return operator.resources.gpu_batch_size if has_gpu() else 0


def _num_calls(operator: Operator) -> int:
    """Return how many calls of an operator there may be at once in this process."""
    if _gpu_batch_size(operator):
        return _GPU_CALLS
    return operator.resources.concurrent_batches if isinstance(operator, ShardOperator) else 1


def _add(spent: Spent, more: Mapping[str, float]) -> None:
    for fingerprint, seconds in more.items():
        spent[fingerprint] += seconds


def _reads_pictures(planned: Planned) -> bool:
    return any(origin.kind in _PICTURE_KEYS for origin in planned.origins.values())


def _batch_size(planned: Planned) -> int:
    assert isinstance(planned.operator, ShardOperator)
    return planned.operator.resources.batch_size
