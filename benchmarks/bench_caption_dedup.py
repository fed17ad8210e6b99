"""caption_dedup over many captions, beside what a user would take for MinHash: rensa (Rust) and datasketch (Python).

python -m benchmarks caption_dedup                              # 5 million captions, and 500,000
python -m benchmarks.bench_caption_dedup --num-captions 500000
"""

import argparse
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.bench_caption_parse import load_captions
from benchmarks.memory import measure
from curate.operators.caption_dedup import CaptionDedup

# datasketch takes milliseconds per caption.
DATASKETCH_CAPTIONS = 20_000
_BATCH = 50_000
_NOT_WORD = re.compile(r"[\W_]+")
_OPERATOR = CaptionDedup()
_NUM_VALUES = _OPERATOR.num_bands * _OPERATOR.num_rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-captions", type=int, default=5_000_000)
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    captions, source = load_captions()
    lines = [
        f"Captions: the first half of one of {len(captions):,} ({source}) and the second half of another, drawn at random; one in twenty is "
        f"an earlier one with a word changed. Threshold {_OPERATOR.threshold}, {_OPERATOR.num_bands} bands of {_OPERATOR.num_rows} values of "
        "runs of five characters.",
        "",
        "| captions | tool | seconds | captions/s | GiB of the largest process | copies |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for count in (options.num_captions // 10, options.num_captions):
            path = f"{folder}/{count}.parquet"
            write_captions(captions, count, path)
            runs = [("winnow caption_dedup, verified, 2 workers", run_winnow, path, count)]
            if count < options.num_captions:
                runs.append(("rensa RMinHash and its LSH, one core, not verified", run_rensa, path, count))
                small = min(count, DATASKETCH_CAPTIONS)
                runs.append(("datasketch MinHashLSH, one core, not verified", run_datasketch, path, small))
            for name, function, file, number in runs:
                cost = measure(function, file, number)
                rate = number / cost.seconds
                lines.append(
                    f"| {number:,} | {name} | {cost.seconds:.1f} | {rate:,.0f} | {cost.gib:.2f} | {cost.result:,} |"
                )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def write_captions(captions: Sequence[str], count: int, path: str) -> None:
    """Write the rows of a pool with made-up captions of real parts."""
    random = np.random.default_rng(0)
    words = [caption.split() for caption in captions]
    every = [word for caption in words for word in caption]
    schema = pa.schema([
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("uid", pa.string()),
        ("alt_text", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
    ])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            first, second = random.integers(0, len(words), (2, size)).tolist()
            texts = [
                words[one][: -(-len(words[one]) // 2)] + words[other][len(words[other]) // 2 :]
                for one, other in zip(first, second, strict=True)
            ]
            for place in range(19, size, 20):
                copy = list(texts[int(random.integers(0, place))])
                copy[int(random.integers(0, len(copy)))] = every[int(random.integers(0, len(every)))]
                texts[place] = copy
            numbers = np.arange(start, start + size)
            columns = {
                "shard": pa.array(numbers // 10_000, pa.int32()),
                "row": pa.array(numbers % 10_000, pa.int32()),
                "uid": pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 32, "0"),
                "alt_text": pa.array([" ".join(text) for text in texts]),
                "status": pa.array(["success"] * size),
                "error_message": pa.nulls(size, pa.string()),
            }
            writer.write_table(pa.table(columns, schema=schema))


def run_winnow(path: str, count: int) -> int:
    """Run the operator; return the number of copies."""
    import duckdb

    from curate.executor import Executor
    from curate.pool_work import PoolWork

    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection, Executor(num_workers=2) as executor:
        connection.execute(f"SET memory_limit = '2GB'; SET temp_directory = '{folder}/spill'")
        relation = connection.sql(f"SELECT * FROM '{path}'")
        tables = list(_OPERATOR.annotate(relation, PoolWork(Path(folder), executor)))
        assert sum(table.num_rows for table in tables) == count
        return sum(pc.sum(table.column("is_caption_near_duplicate").cast(pa.int64())).as_py() or 0 for table in tables)


def run_rensa(path: str, count: int) -> int:
    """Return how many captions rensa takes for copies of earlier ones."""
    import rensa

    index = rensa.RMinHashLSH(_OPERATOR.threshold, _NUM_VALUES, _OPERATOR.num_bands)
    found, start = 0, 0
    for texts in _read(path, count):
        matrix = rensa.RMinHash.digest_matrix_from_token_sets([_shingles(text) for text in texts], _NUM_VALUES, 42)
        found += sum(index.insert_matrix_and_query_duplicate_flags(matrix, start))
        start += len(texts)
    return found


def run_datasketch(path: str, count: int) -> int:
    """Return how many captions datasketch takes for copies of earlier ones."""
    import datasketch

    index = datasketch.MinHashLSH(num_perm=_NUM_VALUES, params=(_OPERATOR.num_bands, _OPERATOR.num_rows))
    found, number = 0, 0
    for texts in _read(path, count):
        for text in texts:
            sketch = datasketch.MinHash(num_perm=_NUM_VALUES)
            sketch.update_batch([shingle.encode() for shingle in _shingles(text)])
            found += bool(index.query(sketch))
            index.insert(number, sketch, check_duplication=False)
            number += 1
    return found


def _read(path: str, count: int) -> Iterator[list[str]]:
    for batch in pq.ParquetFile(path).iter_batches(10_000, columns=["alt_text"]):
        texts = batch.column(0).to_pylist()[:count]
        count -= len(texts)
        yield texts
        if count <= 0:
            return


def _shingles(text: str) -> list[str]:
    """Return the runs of five characters of a caption without case and signs."""
    plain = _NOT_WORD.sub(" ", text.lower()).strip()
    return [plain[start : start + 5] for start in range(max(1, len(plain) - 4))]


if __name__ == "__main__":
    raise SystemExit(main())
