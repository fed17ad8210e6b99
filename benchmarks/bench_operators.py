"""What every operator costs: samples per second of one core, and the memory it adds; and what one pass saves against separate ones.

Each operator runs alone in a process of its own, on decoded pictures and whatever other columns it reads. Time is CPU time, which a busy
machine changes less than the clock. The table is shown in docs/operators.md.

python -m benchmarks operators
python -m benchmarks.bench_operators caption_pii near_dedup      # some of them
"""

import argparse
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench_annotate import cpu_seconds, decode_shard, make_rows
from benchmarks.measured_model import make_clip
from curate.annotate import parse_operator
from curate.columns import Input, gather
from curate.models.clip import to_half
from curate.operator import PoolOperator, ShardOperator
from curate.plan import make_plan
from curate.pool_work import PoolWork
from curate.row_pass import RowPass, annotate_shard
from curate.store import LabelTarget, Pool
from schemas.sample_loss import SAMPLE_LOSS_SCHEMA, SAMPLE_LOSSES_FILE
from schemas.uid import sample_uid
from tests.captioner import make_captioner
from tests.pool import Row, write_shard
from tests.wordnet import make_wordnet
from tests.world import POOL_OPERATORS, ROW_OPERATORS, Source, World

NUM_ROWS, NUM_MODEL_ROWS, NUM_POOL_ROWS = 256, 16, 20_000
DIMENSIONS = 512
ROUNDS = 3
_ENOUGH_SECONDS = 2.0
# Those that need no model and no file: what one pass is compared with.
PASS = (
    *("image_stats", "image_quality", "perceptual_hash", "colour_layout", "face_boxes"),
    *("caption_stats", "caption_complexity", "caption_pii", "caption_safety", "language"),
)
PICTURES = PASS[:5]


@dataclass(frozen=True)
class Figure:
    """CPU seconds per sample, MiB that the process grew by, and the samples measured."""

    seconds: float
    mib: float
    num_samples: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="operators; none: all, and the comparison of passes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows, source = make_rows(NUM_ROWS)
        world = make_world(Path(folder), rows)
        print(
            f"{source}. Models have random weights: CLIP has the shape of ViT-B/32, generative_score a tiny GIT; synset_match has a WordNet of a few words. Pool-wide operators: "
            f"{NUM_POOL_ROWS:,} rows with random hashes and embeddings of {DIMENSIONS} numbers.\n"
        )
        print("| operator | samples/s per core | CPU seconds per million | MiB added | samples |")
        print("|---|---|---|---|---|")
        for name in options.names or sorted((*ROW_OPERATORS, *POOL_OPERATORS)):
            found = run_apart(world, rows, name)
            rate = 1 / found.seconds
            print(
                f"| {name} | {_round(rate)} | {_round(found.seconds * 1e6)} | {found.mib:.0f} | {found.num_samples:,} |",
                flush=True,
            )
        if not options.names:
            compare_passes(Path(folder), rows)
    return 0


def make_world(folder: Path, rows: Sequence[Row]) -> World:
    """Write the files that operators take."""
    words = sorted({word for row in rows for word in (row.caption or "").split()})
    (folder / "metadata.txt").write_text("\n".join(words), encoding="utf-8")
    decided = {"uid": [sample_uid(row.url, row.caption) for row in rows[:100]], "decision": ["keep"] * len(rows[:100])}
    pq.write_table(pa.table(decided), folder / "decisions.parquet")
    np.save(folder / "targets.npy", np.random.default_rng(1).normal(size=(1000, DIMENSIONS)).astype(np.float32))
    references = Pool(folder / "references")
    write_shard(references, 0, rows[:200])
    run_pass(references, ["perceptual_hash", "colour_layout"])
    losses = np.random.default_rng(2).gamma(2.0, size=NUM_POOL_ROWS)
    uids = [f"{row:032x}" for row in range(NUM_POOL_ROWS)]
    table = pa.table({"uid": uids, "loss": losses, "num_draws": np.ones(NUM_POOL_ROWS)})
    pq.write_table(table.cast(SAMPLE_LOSS_SCHEMA), folder / SAMPLE_LOSSES_FILE)
    (folder / "synsets.txt").write_text("n02084071\nn13863186\n")
    return World({
        "wordnet": str(make_wordnet(folder / "wordnet")),
        "synsets": str(folder / "synsets.txt"),
        "model": str(make_clip(folder / "model", [row.caption or "" for row in rows])),
        "generative_score.model": str(make_captioner(folder / "captioner", "git")),
        "against": str(references.root),
        "metadata": str(folder / "metadata.txt"),
        "decisions": str(folder / "decisions.parquet"),
        "targets": str(folder / "targets.npy"),
        "labels": str(folder / "targets.npy"),
        "losses": str(folder / SAMPLE_LOSSES_FILE),
    })


def run_apart(world: World, rows: Sequence[Row], name: str) -> Figure:
    """Measure one operator in a process of its own, a copy of this one: what has been imported is not imported again."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(run_operator(world, rows, name)))
    process.start()
    sender.close()  # or a child that fails would be waited for
    found: Figure = receiver.recv()
    process.join()
    return found


def run_operator(world: World, rows: Sequence[Row], name: str) -> Figure:
    """Measure one operator in this process."""
    operator = world.make(name)
    if isinstance(operator, PoolOperator):
        return run_pool_operator(operator, source_of(world, rows))
    assert isinstance(operator, ShardOperator)
    count = NUM_MODEL_ROWS if operator.resources.model else NUM_ROWS
    source = source_of(world, rows[:count])
    (table,) = [pa.concat_tables(gather(operator, source.inputs(operator), count).tables)]
    before = _reset_peak()
    prepare, run = operator.prepare(), operator.load()

    def once() -> None:
        run(prepare(table) if prepare else table)

    return Figure(_best(once) / max(1, table.num_rows), _peak() - before, table.num_rows)


def run_pool_operator(operator: PoolOperator, source: Source) -> Figure:
    """Measure an operator over many rows: those of `source` again and again, with hashes, embeddings and uids of their own."""
    import duckdb

    random = np.random.default_rng(0)
    rows = source.table(operator)
    chosen = random.integers(0, rows.num_rows, NUM_POOL_ROWS)
    numbers = np.arange(NUM_POOL_ROWS)
    own = {
        "shard": pa.array(numbers // 1000, pa.int32()),
        "row": pa.array(numbers % 1000, pa.int32()),
        "uid": pa.array([f"{row:032x}" for row in numbers]),
        "sha256": pa.array([f"{row:064x}" for row in numbers]),
        "image_perceptual_hash": pa.array(random.integers(0, 2**64, NUM_POOL_ROWS, np.uint64)),
        "alt_text": _mix_captions(source, random),
    }
    vectors = {
        name: to_half(_vectors(random, NUM_POOL_ROWS)).cast(pa.list_(pa.float32()))
        for name in ("image_embedding", "text_embedding")
        if name in operator.reads
    }
    columns = own | vectors
    drawn = rows.take(pa.array(chosen))
    table = pa.table({name: columns.get(name, drawn.column(name)) for name in rows.column_names})
    with duckdb.connect() as connection, tempfile.TemporaryDirectory() as folder:
        relation = connection.from_arrow(table)

        def once() -> None:
            scratch = Path(tempfile.mkdtemp(dir=folder))
            assert sum(part.num_rows for part in operator.annotate(relation, PoolWork(scratch))) == NUM_POOL_ROWS

        before = _reset_peak()
        return Figure(_best(once) / NUM_POOL_ROWS, _peak() - before, NUM_POOL_ROWS)


def source_of(world: World, rows: Sequence[Row]) -> Source:
    """Return the rows, their embeddings random: what reads them costs the same whatever they say."""
    random = np.random.default_rng(3)
    names = ("image_embedding", "text_embedding")
    known = {name: Input.from_column(to_half(_vectors(random, len(rows)))) for name in names}
    return Source(world, rows, known)


def compare_passes(folder: Path, rows: Sequence[Row]) -> None:
    """Print the CPU time of the operators of PASS one by one, all together, and of the decode that they share."""
    pool = Pool(folder / "pool")
    write_shard(pool, 0, rows)
    alone, together, decode = {name: [] for name in PASS}, [], []
    for name in PASS:
        run_pass(pool, [name])  # models, caches
    for _ in range(ROUNDS):
        decode.append(cpu_seconds(lambda: decode_shard(pool, 0)))
        together.append(run_pass(pool, PASS))
        for name in PASS:
            alone[name].append(run_pass(pool, [name]))
    total, whole, bare = sum(map(min, alone.values())), min(together), min(decode)
    shared = (len(PICTURES) - 1) * bare
    per_million = 1e6 / len(rows)
    print(f"\nOne pass of {', '.join(PASS)}, CPU seconds per million of samples, best of {ROUNDS} rounds in turn:\n")
    print("| what | CPU seconds per million |")
    print("|---|---|")
    for what, seconds in (
        ("the sum of separate passes", total),
        ("one pass", whole),
        ("saved", total - whole),
        (f"bare decode, {len(PICTURES) - 1} times: what {len(PICTURES)} operators that read pictures share", shared),
    ):
        print(f"| {what} | {seconds * per_million:.0f} |")


def run_pass(pool: Pool, names: Sequence[str]) -> float:
    """Return the CPU seconds of annotating the first shard from nothing."""
    shutil.rmtree(Path(pool.root) / "annotations", ignore_errors=True)
    columns = pool.read_footer(pool.shard_parquet(0)).schema.to_arrow_schema().names
    plan = make_plan(pool, [parse_operator(name) for name in names], columns)
    labels = {p.operator.sql_name: LabelTarget(operator=p.operator.name, fingerprint=p.fingerprint) for p in plan}
    pool.set_labels(labels)
    row_pass = RowPass(pool=pool, plan=tuple(plan), pool_digest="")
    return cpu_seconds(lambda: annotate_shard(row_pass, pool.shard_header(0)))


def _mix_captions(source: Source, random: np.random.Generator) -> pa.Array:
    """Return captions of a half of one and a half of another."""
    words = [(row.caption or "").split() for row in source.rows]
    pairs = random.integers(0, len(words), (NUM_POOL_ROWS, 2)).tolist()
    return pa.array([" ".join(words[a][: len(words[a]) // 2 + 1] + words[b][len(words[b]) // 2 :]) for a, b in pairs])


def _vectors(random: np.random.Generator, count: int) -> np.ndarray:
    centres = random.normal(size=(50, DIMENSIONS))
    vectors = centres[random.integers(0, 50, count)] + random.normal(size=(count, DIMENSIONS))
    return np.asarray((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def _best(once: Callable[[], None]) -> float:
    """Return the least CPU seconds of a few calls after the first."""
    first = cpu_seconds(once)
    found: list[float] = []
    while len(found) < ROUNDS and (not found or first + sum(found) < _ENOUGH_SECONDS):
        found.append(cpu_seconds(once))
    return max(min(found), 1e-9)


def _reset_peak() -> float:
    """Forget the largest memory so far and return the memory now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def _round(value: float) -> str:
    """Return a number with two significant digits, or three above a hundred."""
    digits = 2 if value < 100 else 3
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


if __name__ == "__main__":
    raise SystemExit(main())
