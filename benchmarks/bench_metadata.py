"""metadata_match and concept_balance over many captions, beside the substring loop that MetaCLIP's rule is written as.

python -m benchmarks metadata                              # 5 million captions, 500,000 entries
python -m benchmarks.bench_metadata --num-captions 500000
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.memory import measure

NUM_ENTRIES = 500_000
NAIVE_CAPTIONS = 40
_BATCH = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-captions", type=int, default=5_000_000)
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    captions, source = load_captions()
    lines = [
        f"{NUM_ENTRIES:,} entries; captions: {source}, a word of another added to each at random.",
        "",
        "| captions | what | seconds | captions/s | GiB of the largest process | result |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        entries = f"{folder}/entries.json"
        Path(entries).write_text(json.dumps(make_entries(captions)))
        for count in (options.num_captions // 10, options.num_captions):
            path = f"{folder}/{count}.parquet"
            cost = measure(match, captions, count, entries, path)
            lines.append(_row(count, "metadata_match, one core", cost, f"{cost.result:.1f} entries per caption"))
            cost = measure(balance, path)
            lines.append(_row(count, "concept_balance, t = count / 2,000", cost, f"{cost.result:,.0f} kept"))
        cost = measure(match_naively, captions, NAIVE_CAPTIONS, entries)
        lines.append(
            _row(NAIVE_CAPTIONS, "the substring loop, one core", cost, f"{cost.result:.1f} entries per caption")
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def _row(count: int, what: str, cost: Any, result: str) -> str:
    return f"| {count:,} | {what} | {cost.seconds:.1f} | {count / cost.seconds:,.0f} | {cost.gib:.2f} | {result} |"


def load_captions() -> tuple[list[str], str]:
    """Return real web alt-texts of the data folder, or made ones where it is absent."""
    folder = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "web_alt_texts.jsonl"
    if path.exists():
        return [json.loads(line)["text"] for line in path.read_text().splitlines()], "real web alt-texts"
    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(30_000)]
    return [" ".join(words[int(w) % 30_000] for w in random.zipf(1.3, 10)) for _ in range(13_000)], "made"


def make_entries(captions: Sequence[str]) -> list[str]:
    """Return the captions' words, pairs of neighbours, and pairs of words drawn at random up to the number wanted."""
    random = np.random.default_rng(1)
    found: dict[str, None] = {}
    for caption in captions:
        words = caption.split()
        found.update(dict.fromkeys(words))
        found.update(dict.fromkeys(" ".join(pair) for pair in pairwise(words)))
    words = [entry for entry in found if " " not in entry]
    while len(found) < NUM_ENTRIES:
        drawn = random.integers(0, len(words), (100_000, 2)).tolist()
        found.update(dict.fromkeys(f"{words[first]} {words[second]}" for first, second in drawn))
    return list(found)[:NUM_ENTRIES]


def batches(captions: Sequence[str], count: int) -> Iterator[list[str]]:
    """Yield captions with the first word of another added."""
    random = np.random.default_rng(2)
    words = [word for caption in captions for word in caption.split()[:1]]
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        chosen, other = random.integers(0, len(captions), size).tolist(), random.integers(0, len(words), size).tolist()
        yield [f"{captions[row]} {words[word]}" for row, word in zip(chosen, other, strict=True)]


def match(captions: Sequence[str], count: int, entries: str, path: str) -> float:
    """Annotate captions and write the rows of a pool; return the mean number of entries."""
    from curate.operators.metadata_match import MetadataMatch

    annotate = MetadataMatch(metadata=entries).load()
    total, start, writer = 0, 0, None
    for texts in batches(captions, count):
        table = pa.table(annotate(pa.table({"alt_text": texts})))
        numbers = np.arange(start, start + len(texts))
        start += len(texts)
        total += pc.sum(table.column("metadata_num_matches")).as_py()
        rows = pa.table({
            "shard": pa.array(numbers // 10_000, pa.int32()),
            "row": pa.array(numbers % 10_000, pa.int32()),
            "uid": pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 32, "0"),
            "metadata_matches": table.column("metadata_matches").cast(pa.list_(pa.int32())),
            "status": pa.array(["success"] * len(texts)),
            "error_message": pa.nulls(len(texts), pa.string()),
        })
        writer = writer or pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows)
    if writer:
        writer.close()
    return total / count


def balance(path: str) -> float:
    """Balance the rows of a pool; return the number that stays."""
    import duckdb

    from curate.operators.concept_balance import ConceptBalance
    from curate.pool_work import PoolWork

    t = pq.read_metadata(path).num_rows / 2000
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        connection.execute("SET memory_limit = '2GB'")
        tables = ConceptBalance(t=t).annotate(connection.sql(f"SELECT * FROM '{path}'"), PoolWork(Path(folder)))
        return sum(pc.sum(table.column("is_concept_balance_kept").cast(pa.int64())).as_py() for table in tables)


def match_naively(captions: Sequence[str], count: int, entries: str) -> float:
    """Try every entry on every caption; return the mean number of entries."""
    from curate.operators.metadata_match import pad, read_entries

    spaced = [f" {entry} " for entry in read_entries(entries)]
    total = 0
    deadline = time.perf_counter() + 300
    for texts in batches(captions, count):
        for text in map(pad, texts):
            total += sum(entry in text for entry in spaced)
            assert time.perf_counter() < deadline
    return total / count


if __name__ == "__main__":
    raise SystemExit(main())
