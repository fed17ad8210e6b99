"""`sweep` over a large synthetic pool beside as many plain `select`s: seconds and peak memory of fresh processes.

The pool is bench_select's with a column `source` more: 1,000 shards of 10,000 rows, of which a tenth are drawn and the others hold the same
values under other uids, so that it is written in a minute.

    python -m benchmarks.bench_sweep                         # 10 million rows; builds the pool first (6 GB)
    python -m benchmarks.bench_sweep --shards 20             # a quick look
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.bench_select import FINGERPRINTS, RULES, SHARD_ROWS, SHARDS, write_shard
from curate.store import LabelTarget, Pool
from schemas.annotation import annotation_schema
from schemas.sample import SHARD_DIGEST_KEY, UID_DIGEST_KEY, shard_digest
from schemas.uid import digest_uids

DRAWN_SHARE = 10
SOURCE = "origin"
SOURCE_FINGERPRINT = "9" * 64
SOURCES = ("cc12m", "laion", "wiki", "yfcc")
OTHER_RULES = {name: sql for name, sql in RULES.items() if name != "mismatched"}
THRESHOLDS = "clip_score.clip_score > {0.11:0.30:0.01}"
GRID = ("clip_score.clip_score > {0.16:0.28:0.03}", "caption_stats.caption_num_words >= {2:8:2}")
FEW_THRESHOLDS = "clip_score.clip_score > {0.11:0.27:0.04}"
FRACTIONS = "clip_score.clip_score={0.05:1:0.05}"


def main() -> None:
    """Build the pool where it is absent, then measure each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default="/tmp/winnow-bench-sweep", help="folder of the synthetic pool")
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS)
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes to measure each way")
    parser.add_argument("--selects", type=int, default=20, help="plain selects to run beside; fewer take less time")
    parser.add_argument("--build-only", action="store_true", help="write the pool and end")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.pool, options.measure, options.selects)))
        return
    folder = f"{options.pool}-{options.shards}x{options.shard_rows}"
    build_pool(folder, options.shards, options.shard_rows)
    if options.build_only:
        return
    print(
        "Twenty points; seven rules stay, shares are counted by source and by language, clip_score is averaged, overlaps of all pairs."
    )
    print("Target for 10 million rows on 2 cores: under 30 s and under 4 GiB.\n")
    print("| what | rows | points | process s | inside s | CPU s | peak MiB |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for round_number in range(options.rounds):
        for way in WAYS:
            if way == "selects" and round_number:
                continue
            command = [sys.executable, "-m", "benchmarks.bench_sweep", "--measure", way, "--pool", folder]
            command += ["--selects", str(options.selects)]
            started = time.perf_counter()
            finished = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - started
            result = json.loads(finished.stdout)
            numbers = [f"{result['rows']:,}", str(result["points"]), f"{seconds:.1f}"]
            numbers += [str(result[name]) for name in ("seconds", "cpu_seconds", "peak_mib")]
            print(f"| {ABOUT[way]} | {' | '.join(numbers)} |", flush=True)


def measure(folder: str, way: str, num_selects: int) -> Mapping[str, object]:
    """Run one of the ways and return what it took."""
    started = time.perf_counter()
    pool = Pool(folder)
    num_rows, num_points = _selects(pool, num_selects) if way == "selects" else WAYS[way](pool)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": usage.ru_maxrss // 1024,
        "rows": num_rows,
        "points": num_points,
    }


def _sweep(pool: Pool, *conditions: str, fractions: str = "", per_group: bool = False) -> tuple[int, int]:
    from curate.axis import read_condition, read_fractions
    from curate.selection import PerGroup, Selection
    from curate.sweep import SweepConfig, sweep

    axes = [*map(read_condition, conditions), *([read_fractions(fractions)] if fractions else [])]
    cap = PerGroup(by="origin.source", num_samples=50_000, order="clip_score.clip_score") if per_group else None
    base = Selection(name="bench", rules=OTHER_RULES, per_group=cap)
    means = ("clip_score.clip_score",)
    report = sweep(
        pool, SweepConfig(axes=tuple(axes), base=base, means=means, shares=("origin.source", "language.language"))
    )
    return report.num_rows, len(report.points)


def _selects(pool: Pool, number: int = 20) -> tuple[int, int]:
    """Run a plain `select` for each of the first points of the first sweep."""
    from curate.axis import read_condition
    from curate.select import select
    from curate.selection import Selection

    choices = read_condition(THRESHOLDS).choices[:number]
    rows = 0
    for choice in choices:
        name = f"bench-{os.getpid()}-{choice.values[0]}"
        report = select(pool, Selection(name=name, rules={**OTHER_RULES, "mismatched": choice.sql}))
        rows = report.num_rows
        output = Path(pool.locate(report.folder))
        for file in output.iterdir():
            file.unlink()
        output.rmdir()
    return rows, len(choices)


WAYS: Mapping[str, Callable[[Pool], tuple[int, int]]] = {
    "thresholds": lambda pool: _sweep(pool, THRESHOLDS),
    "grid": lambda pool: _sweep(pool, *GRID),
    "fractions": lambda pool: _sweep(pool, fractions=FRACTIONS),
    "cuts": lambda pool: _sweep(pool, FEW_THRESHOLDS, per_group=True),
    "selects": _selects,
}
ABOUT = {
    "thresholds": "sweep of 20 thresholds",
    "grid": "sweep of a 5 by 4 grid",
    "fractions": "sweep of 20 shares",
    "cuts": "sweep of 5 thresholds, a cap per source after each",
    "selects": "plain `select`s, one after the other",
}


def build_pool(folder: str, num_shards: int, shard_rows: int) -> None:
    """Write the synthetic pool, or what is missing of it."""
    pool = Pool(folder)
    if len(pool.shards()) == num_shards and pool.labels():
        return
    print(f"writing {num_shards * shard_rows:,} rows to {folder}", file=sys.stderr)
    drawn = max(1, num_shards // DRAWN_SHARE)
    with ProcessPoolExecutor() as workers:
        missing = sorted(set(range(drawn)) - set(pool.shards()))
        list(workers.map(partial(write_drawn, folder, shard_rows), missing, chunksize=4))
        missing = sorted(set(range(drawn, num_shards)) - set(pool.shards()))
        list(workers.map(partial(write_copy, folder, drawn), missing, chunksize=4))
    targets = {**FINGERPRINTS, SOURCE: SOURCE_FINGERPRINT}
    pool.set_labels({name: LabelTarget(operator=name, fingerprint=f) for name, f in targets.items()})


def write_drawn(folder: str, num_rows: int, shard: int) -> None:
    """Write one shard as bench_select does, and the sources of its rows."""
    write_shard(folder, num_rows, shard)
    pool = Pool(folder)
    like = pool.read_table(pool.annotation_path("language", FINGERPRINTS["language"], shard))
    sources = np.random.default_rng(shard).choice(SOURCES, num_rows, p=[0.4, 0.4, 0.15, 0.05])
    schema = annotation_schema(pa.schema([("source", pa.string())]))
    table = pa.table([like["uid"], pa.array(sources), pa.nulls(num_rows, pa.string())], schema=schema)
    metadata = {**like.schema.metadata, b"winnow.operator": SOURCE.encode()}
    metadata[b"winnow.fingerprint"] = SOURCE_FINGERPRINT.encode()
    path = pool.annotation_path(SOURCE, SOURCE_FINGERPRINT, shard)
    pool.commit_table(path, table.replace_schema_metadata(metadata))


def write_copy(folder: str, num_drawn: int, shard: int) -> None:
    """Write one shard with the values of a drawn one under uids of its own."""
    pool = Pool(folder)
    like = shard % num_drawn
    samples = pool.read_table(pool.shard_parquet(like))
    random = np.random.default_rng(shard)
    uids = pa.array([random.bytes(16).hex() for _ in range(samples.num_rows)])
    samples = _with_uids(samples, uids)
    digests = {
        b"winnow.shard_digest": shard_digest(samples).encode(),
        b"winnow.uid_digest": digest_uids(uids.to_pylist()).encode(),
    }
    for name, fingerprint in {**FINGERPRINTS, SOURCE: SOURCE_FINGERPRINT}.items():
        table = _with_uids(pool.read_table(pool.annotation_path(name, fingerprint, like)), uids)
        metadata = {**table.schema.metadata, **digests}
        pool.commit_table(pool.annotation_path(name, fingerprint, shard), table.replace_schema_metadata(metadata))
    own = {SHARD_DIGEST_KEY: digests[b"winnow.shard_digest"], UID_DIGEST_KEY: digests[b"winnow.uid_digest"]}
    pool.commit_table(pool.shard_parquet(shard), samples.replace_schema_metadata(own))


def _with_uids(table: pa.Table, uids: pa.Array) -> pa.Table:
    position = table.column_names.index("uid")
    return table.set_column(position, table.schema.field("uid"), uids)


if __name__ == "__main__":
    main()
