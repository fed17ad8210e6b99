"""One pass over a shard with operators that read each other: pictures before text, text before pictures, models among them."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.images import pixels
from curate.operator import Annotate, Operator, Prepare, Resources, ShardOperator
from curate.plan import make_plan
from curate.row_pass import RowPass, ShardReport, StreamItem, annotate_shard, load_consumer, stream_shard
from curate.store import Pool
from schemas.errors import ContractError
from tests.pool import CORRUPT_ROW, FAILED_ROWS, make_rows

# Which operators saw how many rows at a time.
calls: list[tuple[str, int]] = []


@dataclass(frozen=True, kw_only=True)
class Step(ShardOperator):
    """Adds `<name>_x`: the sum of its inputs, a picture counting as its first byte and a text as its length."""

    needs: tuple[Operator, ...] = field(default=())

    def requires(self) -> tuple[Operator, ...]:
        return self.needs

    def identity(self) -> Mapping[str, Any]:
        return {}

    def load(self) -> Annotate:
        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            calls.append((self.name, batch.num_rows))
            columns = [measure(name, batch.column(name)) for name in batch.column_names]
            return {f"{self.name}_x": [sum(values) for values in zip(*columns, strict=True)]}

        return annotate


def measure(name: str, column: pa.ChunkedArray) -> list[int]:
    if name == "image":
        return [int(picture.reshape(-1)[0]) for picture in pixels(column) if picture is not None]
    return [len(value) if isinstance(value, str) else int(value) for value in column.to_pylist()]


def step(name: str, reads: Sequence[str], needs: Sequence[Operator] = (), **attributes: Any) -> Operator:
    body = {
        "name": name,
        "version": 1,
        "reads": tuple(reads),
        "writes": pa.schema([(f"{name}_x", pa.int32())]),
        "__doc__": name,
        "__module__": __name__,
        "__annotations__": {},
        **attributes,
    }
    made: type[Operator] = dataclass(frozen=True, kw_only=True)(type(name, (Step,), body))
    return made(needs=tuple(needs))  # type: ignore[call-arg]


def prepare_sum(self: ShardOperator) -> Prepare:
    return lambda batch: pa.table({"ready": measure("image", batch.column("image"))})


def prepare_less(self: ShardOperator) -> Prepare:
    return lambda batch: pa.table({"ready": [0] * (batch.num_rows - 1)})


def make_pass(pool: Pool, *operators: Operator) -> RowPass:
    calls.clear()
    plan = make_plan(pool, operators, pool.read_footer(pool.shard_parquet(0)).schema.to_arrow_schema().names)
    return RowPass(pool=pool, plan=tuple(plan), pool_digest="")


def read(row_pass: RowPass, name: str) -> list[int | None]:
    (planned,) = [planned for planned in row_pass.plan if planned.operator.name == name]
    table = row_pass.pool.read_table(row_pass.pool.annotation_path(name, planned.fingerprint, 0))
    return list(table.column(f"{name}_x").to_pylist())


def consume(row_pass: RowPass) -> ShardReport:
    header = row_pass.pool.shard_header(0)
    return load_consumer(row_pass)(header, stream_shard(row_pass, header))


def with_picture(values: list[int | None]) -> list[int | None]:
    return [None if row in (*FAILED_ROWS, CORRUPT_ROW) else value for row, value in enumerate(values)]


def lengths() -> list[int | None]:
    return [None if row.caption is None else len(row.caption) for row in make_rows(12)]


def add(*columns: list[int | None]) -> list[int | None]:
    rows = zip(*columns, strict=True)
    return [None if None in values else sum(value for value in values if value is not None) for values in rows]


def test_operators_before_beside_and_after_pictures(tiny_pool: Pool) -> None:
    """text -> picture -> text -> picture -> text: each sees what the one before made, and the pictures are decoded once."""
    first = step("first", ["alt_text"])
    second = step("second", ["image", "first_x"], [first])
    third = step("third", ["second_x", "alt_text"], [second])
    fourth = step("fourth", ["image", "third_x"], [third])
    fifth = step("fifth", ["fourth_x"], [fourth])
    picture = step("picture", ["image"])
    row_pass = make_pass(tiny_pool, fifth, picture)
    report = annotate_shard(row_pass, tiny_pool.shard_header(0))
    pictures = read(row_pass, "picture")
    assert [value is None for value in pictures] == [value is None for value in with_picture([1] * 12)]
    second_x = add(pictures, lengths())
    third_x = add(second_x, lengths())
    assert read(row_pass, "first") == lengths()
    assert read(row_pass, "second") == second_x
    assert read(row_pass, "third") == third_x
    assert read(row_pass, "fifth") == read(row_pass, "fourth") == add(third_x, pictures)
    assert sorted(report.num_errors.values()) == [1, 3, 4, 4, 4, 4]
    assert row_pass.missing(tiny_pool.shard_header(0)) == []


MODEL = Resources(model=True, batch_size=4)


@pytest.mark.parametrize("prepares", [False, True])
def test_models_read_pictures_texts_and_each_other(tiny_pool: Pool, prepares: bool) -> None:
    light = step("light", ["image"])
    extra = {"prepare": prepare_sum} if prepares else {}
    model = step("model", ["image"], resources=MODEL, **extra)
    mixed = step("mixed", ["model_x", "light_x", "alt_text", "image"], [model, light], resources=MODEL)
    after = step("after", ["mixed_x", "alt_text"], [mixed])
    row_pass = make_pass(tiny_pool, after)
    report = consume(row_pass)
    pictures = read(row_pass, "light")
    assert read(row_pass, "model") == pictures
    assert read(row_pass, "mixed") == add(pictures, pictures, pictures, lengths())
    assert read(row_pass, "after") == add(pictures, pictures, pictures, lengths(), lengths())
    assert len(report.num_errors) == 4
    # Nine pictures in batches of four, wherever the blocks of decoded pictures end.
    assert [size for name, size in calls if name == "model"] == [4, 4, 1]


def test_batches_of_a_model_do_not_depend_on_the_blocks(
    pool_builder: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate import shard_reader

    monkeypatch.setattr(shard_reader, "BLOCK_BYTES", 1)
    pool = pool_builder(num_shards=1, shard_size=30)
    row_pass = make_pass(pool, step("model", ["image"], resources=MODEL))
    consume(row_pass)
    assert [size for name, size in calls if name == "model"] == [4] * 6 + [3]


def load_slow_length(self: ShardOperator) -> Annotate:
    """Wait the longer the earlier a chunk is, and note how many wait at once."""
    lock = threading.Lock()

    def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
        with lock:
            calls.append((f"{self.name} enters", batch.num_rows))
        time.sleep(0.3 / len(calls))
        with lock:
            calls.append((f"{self.name} leaves", batch.num_rows))
        return {f"{self.name}_x": [len(text) for text in batch["alt_text"].to_pylist()]}

    return annotate


def test_chunks_wait_side_by_side_where_an_operator_bears_it(
    pool_builder: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate import shard_reader

    monkeypatch.setattr(shard_reader, "CHUNK_ROWS", 5)
    pool = pool_builder(num_shards=1, shard_size=30)
    resources = Resources(model=True, gpus=0, batch_size=8, concurrent_batches=3)
    patient = step("patient", ["alt_text"], resources=resources, load=load_slow_length)
    after = step("after", ["patient_x"], [patient], resources=MODEL)
    row_pass = make_pass(pool, after)
    consume(row_pass)
    running = [
        sum(1 if "enters" in name else -1 for name, _ in calls[:n] if "patient" in name) for n in range(len(calls))
    ]
    assert max(running) == 3
    captions = [None if row.caption is None else len(row.caption) for row in make_rows(30)]
    assert read(row_pass, "patient") == read(row_pass, "after") == captions


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_gpu_gets_whole_chunks_two_at_a_time(
    pool_builder: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    from curate import shard_reader
    from curate.models import staging

    monkeypatch.setattr(shard_reader, "CHUNK_ROWS", 10)
    monkeypatch.setattr(staging, "has_gpu", lambda: has_gpu)
    pool = pool_builder(num_shards=1, shard_size=40)
    tower = step(
        "tower",
        ["alt_text"],
        resources=Resources(model=True, batch_size=4, gpu_batch_size=8),
        load=load_slow_length,
    )
    after = step("after", ["tower_x"], [tower])
    row_pass = make_pass(pool, after)
    consume(row_pass)
    entered = [size for name, size in calls if name == "tower enters"]
    # A chunk of ten has nine captions where the first dozen's null is.
    sizes = {False: [4, 4, 1] + [4, 4, 2] * 3, True: [8, 1] + [8, 2] * 3}
    assert sorted(entered) == sorted(sizes[has_gpu])
    running = [
        sum(1 if "enters" in name else -1 for name, _ in calls[:n] if "tower" in name) for n in range(len(calls))
    ]
    assert max(running) == (2 if has_gpu else 1)
    captions = [None if row.caption is None else len(row.caption) for row in make_rows(40)]
    assert read(row_pass, "tower") == read(row_pass, "after") == captions


def make_gpu_pass(pool: Pool) -> RowPass:
    """Two operators with a size for GPUs, of a text and of prepared pictures; one without that reads both and a picture; what reads it."""
    large = Resources(model=True, batch_size=4, gpu_batch_size=24)
    words = step("words", ["alt_text"], resources=large)
    seen = step("seen", ["image"], resources=large, prepare=prepare_sum)
    beside = step("beside", ["words_x", "seen_x", "image"], [words, seen], resources=MODEL)
    return make_pass(pool, step("behind", ["beside_x", "alt_text"], [beside], resources=Resources(batch_size=256)))


def written(row_pass: RowPass) -> dict[str, bytes]:
    paths = {p.operator.name: row_pass.pool.annotation_path(p.operator.name, p.fingerprint, 0) for p in row_pass.plan}
    return {name: Path(row_pass.pool.locate(path)).read_bytes() for name, path in paths.items()}


def sizes() -> dict[str, list[int]]:
    """The rows of the calls of each operator, in order."""
    return {name: [size for other, size in calls if other == name] for name, _ in calls}


@pytest.fixture
def long_pool(pool_builder: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A shard of 47 rows, in chunks of ten: nine captions and seven pictures in the first."""
    from curate import shard_reader

    monkeypatch.setattr(shard_reader, "CHUNK_ROWS", 10)
    return pool_builder(num_shards=1, shard_size=47)


def use_gpu(monkeypatch: pytest.MonkeyPatch, has_gpu: bool) -> None:
    from curate.models import staging

    monkeypatch.setattr(staging, "has_gpu", lambda: has_gpu)


def test_a_gpu_gets_chunks_together(long_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    row_pass = make_gpu_pass(long_pool)
    use_gpu(monkeypatch, False)
    report = consume(row_pass)
    alone, alone_sizes = written(row_pass), sizes()
    for planned in row_pass.plan:
        long_pool.remove(long_pool.annotation_path(planned.operator.name, planned.fingerprint, 0))
    calls.clear()
    use_gpu(monkeypatch, True)
    together = consume(row_pass)
    assert alone_sizes["words"] == [4, 4, 1, *[4, 4, 2] * 3, 4, 3]
    # A third chunk would be too much for a call; two groups may end in either order.
    assert sorted(sizes()["words"]) == [7, 19, 20]
    assert sorted(sizes()["seen"]) == [7, 17, 20]
    # The batches of the others are those that they have without a GPU.
    assert {name: sorted(found) for name, found in sizes().items() if name in ("beside", "behind")} == {
        name: sorted(found) for name, found in alone_sizes.items() if name in ("beside", "behind")
    }
    assert written(row_pass) == alone
    assert together.num_errors == report.num_errors
    assert read(row_pass, "words") == [None if row.caption is None else len(row.caption) for row in make_rows(47)]


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [(3 << 20, [44]), (500_000, [7, 17, 20]), (1, [7, 7, 10, 10, 10])],
)
def test_large_pictures_do_not_come_together(
    long_pool: Pool, monkeypatch: pytest.MonkeyPatch, max_bytes: int, expected: list[int]
) -> None:
    """Pictures of 20,736 bytes that nothing makes smaller before: a chunk's take up to 207,360."""
    from curate import row_pass as module

    use_gpu(monkeypatch, True)
    monkeypatch.setattr(module, "GROUP_BYTES", max_bytes)
    resources = Resources(model=True, batch_size=4, gpu_batch_size=1000)
    row_pass = make_pass(long_pool, step("bulky", ["image"], resources=resources))
    consume(row_pass)
    assert sum(expected) == sum(sizes()["bulky"])
    assert sorted(sizes()["bulky"]) == expected


def test_without_a_gpu_nothing_waits_for_the_next_chunk(long_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, False)
    resources = Resources(model=True, batch_size=10, gpu_batch_size=24)
    row_pass = make_pass(long_pool, step("prompt", ["alt_text"], resources=resources))
    header = long_pool.shard_header(0)

    def note() -> Iterator[StreamItem | ShardReport]:
        for item in stream_shard(row_pass, header):
            if isinstance(item, StreamItem):
                calls.append(("drawn", len(item.uids)))
            yield item

    load_consumer(row_pass)(header, note())
    assert [name for name, _ in calls] == ["drawn", "prompt"] * 5


def test_a_program_elsewhere_is_kept_busy_by_single_chunks(long_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, True)
    tower = step("lone", ["alt_text"], resources=Resources(model=True, batch_size=4, gpu_batch_size=24))
    asked = step("asked", ["alt_text"], resources=Resources(model=True, batch_size=8, concurrent_batches=3))
    consume(make_pass(long_pool, tower, asked))
    assert sorted(sizes()["lone"]) == [7, 9, 10, 10, 10]


def test_a_pass_that_was_interrupted_on_a_gpu_ends_with_the_same_bytes(
    long_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch, True)
    row_pass = make_gpu_pass(long_pool)
    header = long_pool.shard_header(0)
    first_three = itertools.islice(stream_shard(row_pass, header), 3)

    def break_off() -> Iterator[StreamItem | ShardReport]:
        yield from first_three
        raise ConnectionError("the stream broke")

    with pytest.raises(ConnectionError):
        load_consumer(row_pass)(header, break_off())
    assert len(row_pass.missing(header)) == 4
    consume(row_pass)
    whole = written(row_pass)
    for name in ("seen", "beside"):  # committed one after the other: a process may end between two
        (planned,) = [planned for planned in row_pass.plan if planned.operator.name == name]
        long_pool.remove(long_pool.annotation_path(name, planned.fingerprint, 0))
    calls.clear()
    consume(row_pass)
    assert set(sizes()) == {"seen", "beside"}
    assert written(row_pass) == whole


def test_what_is_there_is_read_and_not_computed(tiny_pool: Pool) -> None:
    first = step("first", ["alt_text"])
    second = step("second", ["first_x", "image"], [first])
    annotate_shard(make_pass(tiny_pool, first), tiny_pool.shard_header(0))
    row_pass = make_pass(tiny_pool, second)
    annotate_shard(row_pass, tiny_pool.shard_header(0))
    assert {name for name, _ in calls} == {"second"}
    both = read(row_pass, "second")
    annotate_shard(row_pass, tiny_pool.shard_header(0))
    assert len(calls) == 1
    assert read(row_pass, "second") == both


def test_an_error_upstream_is_named_downstream(tiny_pool: Pool) -> None:
    first = step("first", ["image"])
    second = step("second", ["first_x"], [first])
    row_pass = make_pass(tiny_pool, second)
    annotate_shard(row_pass, tiny_pool.shard_header(0))
    (planned,) = [planned for planned in row_pass.plan if planned.operator.name == "second"]
    errors = tiny_pool.read_table(tiny_pool.annotation_path("second", planned.fingerprint, 0)).column("error")
    assert errors[1].as_py() == "no first_x: no image: HTTP Error 404: Not Found"


def test_prepare_may_not_lose_rows(tiny_pool: Pool) -> None:
    row_pass = make_pass(tiny_pool, step("lossy", ["image"], resources=MODEL, prepare=prepare_less))
    with pytest.raises(ContractError, match="lossy must prepare 4 rows for 4, got 3"):
        consume(row_pass)
    assert row_pass.missing(tiny_pool.shard_header(0)) == list(row_pass.plan)
