"""`select` over a large synthetic pool: seconds and peak memory of a fresh process.

The pool is as a crawl would leave it: 1,000 shards of 10,000 rows with random uids, URLs and captions (a tenth of them failed downloads),
and the tables of six operators, written through the same functions as real ones.

    python -m benchmarks.bench_select                        # 10 million rows; builds the pool first (1.5 minutes, 6 GB)
    python -m benchmarks.bench_select --shards 20            # a quick look
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.store import LabelTarget, Pool
from schemas.annotation import AnnotationHeader, annotation_schema
from schemas.sample import (
    SHARD_DIGEST_KEY,
    STATUS_FAILED_DOWNLOAD,
    STATUS_SUCCESS,
    UID_DIGEST_KEY,
    sample_key,
    sample_schema,
    shard_digest,
    shard_name,
)
from schemas.uid import digest_uids

SHARDS = 1000
SHARD_ROWS = 10_000
FINGERPRINTS = {
    name: f"{index:x}" * 64
    for index, name in enumerate(
        ("image_stats", "caption_stats", "language", "perceptual_hash", "clip_score", "exact_dedup"), start=10
    )
}
RULES = {
    "small": "least(image_stats.image_width, image_stats.image_height) >= 200",
    "extreme_aspect": "image_stats.image_aspect_ratio <= 3",
    "short_caption": "caption_stats.caption_num_words > 2 AND caption_stats.caption_num_characters > 5",
    "language": "language.language = 'en' AND language.language_probability > 0.5",
    "repetitive": "caption_stats.caption_repetition_ratio < 0.8",
    "flat_image": "bit_count(perceptual_hash.image_phash) BETWEEN 8 AND 56",
    "duplicate": "NOT exact_dedup.is_exact_duplicate",
    "mismatched": "clip_score.clip_score > 0.2",
}


def main() -> None:
    """Build the pool where it is absent, then measure the selection in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default="/tmp/winnow-bench-select", help="folder of the synthetic pool")
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes to measure")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.pool)))
        return
    folder = f"{options.pool}-{options.shards}x{options.shard_rows}"
    build_pool(folder, options.shards, options.shard_rows)
    print(f"{len(RULES)} rules, a weight and a top fraction over 6 operators; every round is a fresh process.")
    print("Target for 10 million rows on 2 cores: under 10 s and under 4 GiB.\n")
    print("| rows | kept | process s | select s | CPU s | peak MiB | ledger and kept rows, MiB |")
    print("| --: | --: | --: | --: | --: | --: | --: |")
    for _ in range(options.rounds):
        command = [sys.executable, "-m", "benchmarks.bench_select", "--measure", "--pool", folder]
        started = time.perf_counter()
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        result = json.loads(finished.stdout)
        numbers = [f"{result['rows']:,}", f"{result['kept']:,}", f"{seconds:.2f}"]
        numbers += [str(result[name]) for name in ("select_seconds", "cpu_seconds", "peak_mib", "written_mib")]
        print(f"| {' | '.join(numbers)} |", flush=True)


def measure(folder: str) -> Mapping[str, object]:
    """Run one selection with eight rules, a weight and a top fraction, and return what it took."""
    from curate.select import Selection, Top, select

    selection = Selection(
        name=f"bench-{os.getpid()}",
        rules=RULES,
        top=Top(by="clip_score.clip_score", fraction=0.3),
        weight="exp(4 * clip_score.clip_score)",
    )
    started = time.perf_counter()
    report = select(Pool(folder), selection)
    seconds = time.perf_counter() - started
    output = Path(folder) / report.folder
    written = sum(file.stat().st_size for file in output.iterdir())
    for file in output.iterdir():
        file.unlink()
    output.rmdir()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "select_seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": usage.ru_maxrss // 1024,
        "rows": report.num_rows,
        "kept": report.num_kept,
        "written_mib": written >> 20,
    }


def build_pool(folder: str, num_shards: int, shard_rows: int) -> None:
    """Write the synthetic pool unless `folder` already holds it."""
    pool = Pool(folder)
    if len(pool.shards()) == num_shards and pool.labels():
        return
    print(f"writing {num_shards * shard_rows:,} rows to {folder}", file=sys.stderr)
    with ProcessPoolExecutor() as workers:
        list(workers.map(partial(write_shard, folder, shard_rows), range(num_shards), chunksize=8))
    pool.set_labels({name: LabelTarget(operator=name, fingerprint=f) for name, f in FINGERPRINTS.items()})


def write_shard(folder: str, num_rows: int, shard: int) -> None:
    """Write one shard's Parquet and its six annotations; no tar, for a selection reads none."""
    pool = Pool(folder)
    random = np.random.default_rng(shard)
    table = sample_table(random, shard, num_rows)
    header = AnnotationHeader(
        operator="",
        version="1",
        fingerprint="",
        parameters="{}",
        shard_digest=shard_digest(table),
        uid_digest=digest_uids(table["uid"].to_pylist()),
    )
    failed = pa.array(np.asarray(table["status"].to_pylist()) != STATUS_SUCCESS)
    for name, columns in annotation_columns(random, table).items():
        writes = pa.schema([(column, values.type) for column, values in columns.items()])
        nulled = [pa.compute.if_else(failed, pa.scalar(None, values.type), values) for values in columns.values()]
        errors = pa.compute.if_else(failed, "no image", pa.scalar(None, pa.string()))
        written = pa.table([table["uid"], *nulled, errors], schema=annotation_schema(writes))
        metadata = {**header.to_metadata(), b"winnow.operator": name.encode()}
        metadata[b"winnow.fingerprint"] = FINGERPRINTS[name].encode()
        pool.commit_table(
            pool.annotation_path(name, FINGERPRINTS[name], shard), written.replace_schema_metadata(metadata)
        )
    metadata = {SHARD_DIGEST_KEY: header.shard_digest.encode(), UID_DIGEST_KEY: header.uid_digest.encode()}
    pool.commit_table(f"shards/{shard_name(shard)}.parquet", table.replace_schema_metadata(metadata))


def sample_table(random: np.random.Generator, shard: int, num_rows: int) -> pa.Table:
    """Return a shard's rows: random identities, URLs of 40 to 110 characters, captions of 1 to 20 words."""
    vocabulary = [f"w{value:x}" for value in np.random.default_rng(0).integers(16, 1 << 28, 20_000)]
    ranks = np.minimum(random.zipf(1.2, num_rows * 20) - 1, len(vocabulary) - 1)
    lengths = random.integers(1, 21, num_rows)
    captions = [
        " ".join(vocabulary[rank] for rank in ranks[20 * row : 20 * row + length]) for row, length in enumerate(lengths)
    ]
    names = _hex(random, num_rows, 20).to_pylist()
    hosts = random.integers(0, 5000, num_rows)
    urls = [
        f"https://cdn{host}.example-{host % 97}.com/wp-content/uploads/{2010 + host % 15}/{name}.jpg"
        for host, name in zip(hosts, names, strict=True)
    ]
    success = random.random(num_rows) > 0.1
    width, height = (random.integers(100, 1600, num_rows).astype(np.int32) for _ in range(2))
    columns = {
        "uid": _hex(random, num_rows, 16),
        "num_occurrences": pa.array(np.ones(num_rows, np.int32)),
        "caption": pa.array(captions),
        "url": pa.array(urls),
        "key": pa.array([sample_key(shard, row, num_rows) for row in range(num_rows)]),
        "status": pa.array(np.where(success, STATUS_SUCCESS, STATUS_FAILED_DOWNLOAD)),
        "error_message": pa.array([None if ok else "HTTP Error 404: Not Found" for ok in success], pa.string()),
        "width": pa.array(width, mask=~success),
        "height": pa.array(height, mask=~success),
        "original_width": pa.array(width, mask=~success),
        "original_height": pa.array(height, mask=~success),
        "exif": pa.array(np.full(num_rows, "{}")),
        "sha256": _hex(random, num_rows, 32),
    }
    return pa.table(columns, schema=sample_schema())


def annotation_columns(random: np.random.Generator, table: pa.Table) -> Mapping[str, Mapping[str, pa.Array]]:
    """Return the columns of six operators for a shard's rows, as their distributions would be on a crawl."""
    rows = table.num_rows
    width, height = (table[name].combine_chunks().fill_null(1).to_numpy() for name in ("width", "height"))
    words = np.asarray([len(text.split()) for text in table["caption"].to_pylist()], np.int32)
    characters = np.asarray([len(text) for text in table["caption"].to_pylist()], np.int32)

    def ratio() -> pa.Array:
        return pa.array(random.random(rows, np.float32))

    return {
        "image_stats": {
            "image_width": pa.array(width),
            "image_height": pa.array(height),
            "image_aspect_ratio": pa.array((np.maximum(width, height) / np.minimum(width, height)).astype(np.float32)),
            "image_num_bytes": pa.array(random.integers(2000, 500_000, rows)),
            **{f"image_{name}": ratio() for name in ("sharpness", "brightness", "contrast", "entropy", "border_ratio")},
        },
        "caption_stats": {
            "caption_num_words": pa.array(words),
            "caption_num_characters": pa.array(characters),
            **{f"caption_{name}_ratio": ratio() for name in ("repetition", "digit", "symbol", "upper")},
        },
        "language": {
            "language": pa.array(random.choice(["en", "de", "fr", "ja", "ru"], rows, p=[0.7, 0.1, 0.08, 0.07, 0.05])),
            "language_probability": ratio(),
        },
        "perceptual_hash": {"image_phash": pa.array(random.integers(0, 1 << 63, rows, np.uint64))},
        "clip_score": {"clip_score": pa.array(random.normal(0.24, 0.06, rows).astype(np.float32))},
        "exact_dedup": {"is_exact_duplicate": pa.array(random.random(rows) < 0.05)},
    }


def _hex(random: np.random.Generator, count: int, num_bytes: int) -> pa.Array:
    text = random.bytes(count * num_bytes).hex().encode()
    offsets = np.arange(0, 2 * num_bytes * (count + 1), 2 * num_bytes, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


if __name__ == "__main__":
    main()
