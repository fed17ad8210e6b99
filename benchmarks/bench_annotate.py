"""One annotation pass with every light operator, against bare decoding of the same files in as many processes.

Both sides read the same tars with the same index, decode with the same function, run on the same Ray with as many workers, and take turns.
The pass also reads and writes Parquet, computes the columns and commits them; the share of bare decoding's speed that remains is the
figure. Then each operator alone: samples per second of one process, and CPU seconds per million.
"""

import functools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from curate import images
from curate.annotate import annotate, parse_operator
from curate.columns import Input, gather
from curate.executor import Executor
from curate.luma import to_luma, to_luma_column
from curate.operator import ShardOperator
from curate.plan import make_plan
from curate.row_pass import RowPass, annotate_shard
from curate.store import Pool
from curate.tar import index_tar
from tests.contract import make_inputs
from tests.pool import Row, write_shard

LIGHT = ("image_stats", "caption_stats", "language", "perceptual_hash")
NUM_WORKERS = 2
NUM_SHARDS = 4
ROUNDS = 5
TARGET = 0.7


def main() -> None:
    """Print the tables; a number as argument is the rows per shard."""
    shard_size = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as folder, Executor(num_workers=NUM_WORKERS) as executor:
        rows, source = make_rows(shard_size)
        pool = Pool(Path(folder) / "pool")
        for shard in range(NUM_SHARDS):
            write_shard(pool, shard, rows)
        print(f"{NUM_SHARDS} shards of {shard_size} pictures ({source}), {NUM_WORKERS} processes\n")
        compare(pool, executor, NUM_SHARDS * shard_size)
        compare_cpu(pool, executor, shard_size)
    measure_operators(rows)


def compare(pool: Pool, executor: Executor, num_samples: int) -> None:
    """Print bare decode against the pass, alternating, medians of ROUNDS."""
    annotate_pass(pool, executor)  # imports, caches
    decode_pass(pool, executor)
    seconds: dict[str, list[float]] = {"bare decode": [], "annotate": []}
    for _ in range(ROUNDS):
        seconds["bare decode"].append(timed(decode_pass, pool, executor))
        seconds["annotate"].append(timed(annotate_pass, pool, executor))
    print("| pass | samples/s (median) | fastest | slowest |")
    print("| --- | --- | --- | --- |")
    for name, times in seconds.items():
        rates = [num_samples / t for t in (statistics.median(times), min(times), max(times))]
        print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in rates)} |")
    ratios = [bare / full for bare, full in zip(*seconds.values(), strict=True)]
    verdict = "reached" if statistics.median(ratios) >= TARGET else "missed"
    print(f"\n{', '.join(LIGHT)} in one pass: {statistics.median(ratios):.2f} of bare decode")
    print(f"(rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; target {TARGET}: {verdict})\n")


def compare_cpu(pool: Pool, executor: Executor, shard_size: int) -> None:
    """Print the CPU time of both for one shard: what is left when other programs disturb the clock."""
    (outcome,) = executor.map(functools.partial(measure_cpu, pool), [shard_size])
    assert outcome.result is not None, outcome.error
    bare, full = outcome.result
    print(f"CPU seconds per million pictures: bare decode {bare:.0f}, pass {full:.0f}, ratio {bare / full:.2f}\n")


def measure_cpu(pool: Pool, shard_size: int) -> tuple[float, float]:
    """Return the CPU seconds per million of bare decode and of the pass, which take turns in this process: a worker, as in real passes."""
    operators = [parse_operator(name) for name in LIGHT]
    plan = make_plan(pool, operators, pool.read_footer(pool.shard_parquet(0)).schema.to_arrow_schema().names)
    row_pass = RowPass(pool=pool, plan=tuple(plan), pool_digest="")
    seconds: dict[str, list[float]] = {"decode": [], "annotate": []}
    for _ in range(ROUNDS):
        shutil.rmtree(Path(pool.root) / "annotations", ignore_errors=True)
        seconds["decode"].append(cpu_seconds(lambda: decode_shard(pool, 0)))
        seconds["annotate"].append(cpu_seconds(lambda: annotate_shard(row_pass, pool.shard_header(0))))
    bare, full = (min(times) / shard_size * 1e6 for times in seconds.values())
    return bare, full


def timed(function: Callable[[Pool, Executor], None], pool: Pool, executor: Executor) -> float:
    """Return the seconds a pass takes."""
    started = time.perf_counter()
    function(pool, executor)
    return time.perf_counter() - started


def decode_pass(pool: Pool, executor: Executor) -> None:
    """Decode every picture of the pool and keep nothing."""
    outcomes = list(executor.map(functools.partial(decode_shard, pool), pool.shards()))
    assert all(outcome.result for outcome in outcomes), outcomes


def decode_shard(pool: Pool, shard: int) -> int:
    """Return how many pictures a shard holds, having decoded them all."""
    with pool.open(f"shards/{shard:05d}.tar") as file:
        members = [member for member in index_tar(file) if member.name.endswith(".jpg")]
        for member in members:
            file.seek(member.offset)
            images.decode(file.read(member.size))
    return len(members)


def annotate_pass(pool: Pool, executor: Executor) -> None:
    """Annotate the pool from nothing."""
    shutil.rmtree(Path(pool.root) / "annotations", ignore_errors=True)
    annotate(pool, [parse_operator(name) for name in LIGHT], executor=executor)


def measure_operators(rows: list[Row]) -> None:
    """Print the speed of each light operator alone, in this process, on decoded chunks of 256."""
    print("| operator | samples/s of one process | CPU seconds per million |")
    print("| --- | --- | --- |")
    chunk = rows[:256]
    decoded = decode_rows(chunk)
    for name in LIGHT:
        operator = parse_operator(name)
        assert isinstance(operator, ShardOperator)
        inputs = {
            column: decoded if column == "image_luma" else make_inputs_of(operator, chunk)[column]
            for column in operator.reads
        }
        (table,) = gather(operator, inputs, len(chunk)).tables
        run = operator.load()
        run(table)
        best = min(cpu_seconds(lambda run=run, table=table: run(table)) for _ in range(5)) / len(chunk)  # type: ignore[misc]
        print(f"| {name} | {1 / best:.0f} | {best * 1e6:.0f} |")
    best = min(cpu_seconds(lambda: decode_rows(chunk)) for _ in range(3)) / len(chunk)
    print(f"| (decode and luma, for comparison) | {1 / best:.0f} | {best * 1e6:.0f} |")


def make_inputs_of(operator: ShardOperator, chunk: list[Row]) -> dict[str, Input]:
    """Return the inputs that are no pictures."""
    return {column: found for column, found in make_inputs(operator, chunk).items() if column != "image_luma"}


def decode_rows(chunk: list[Row]) -> Input:
    """Return the pictures of a chunk as an operator gets them."""
    planes = [to_luma(images.decode(row.image)) for row in chunk if row.image]
    return Input.from_errors(to_luma_column(planes), [None] * len(chunk))


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time a call takes, which a busy machine changes less than the time on the clock."""
    started = time.process_time()
    function()
    return time.process_time() - started


def make_rows(count: int) -> tuple[list[Row], str]:
    """Return rows with pictures of 256 pixels on the short side, from real photographs where they are there."""
    data = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if (data / "openstax.jsonl").exists():
        captions = [json.loads(line)["text"] for line in (data / "web_alt_texts.jsonl").read_text().splitlines()]
        files = [
            (data / json.loads(line)["image"]).read_bytes()
            for name in ("openstax", "grocery")
            for line in (data / f"{name}.jsonl").read_text().splitlines()[::5]
        ]
        pictures = list(zip(files, captions, strict=False))
        source = "textbook figures and phone photos with alt-texts of the web"
    else:
        pictures = [(noise(seed), f"drawn picture number {seed} of a benchmark") for seed in range(100)]
        source = "smooth noise"
    stored = []
    for data_bytes, caption in pictures:
        picture = images.decode(data_bytes)
        if min(picture.shape[:2]) * 6 >= max(picture.shape[:2]):
            stored.append((images.encode(images.resize(picture, 256, "keep_ratio")), caption))
    rows = [
        Row(
            url=f"https://example.org/{index}.jpg",
            caption=stored[index % len(stored)][1],
            image=stored[index % len(stored)][0],
        )
        for index in range(count)
    ]
    return rows, f"{source}, 256 pixels on the short side"


def noise(seed: int) -> bytes:
    """Return a JPEG of coloured clouds."""
    small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return images.encode(images.resize_to(small, 480, 640))


if __name__ == "__main__":
    main()
