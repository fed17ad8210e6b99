"""semantic_dedup over many embeddings, beside the paper's way: whole similarity matrices, cluster by cluster, in one process.

python -m benchmarks semantic_dedup                              # 1 million embeddings of 512 numbers, and 100,000
python -m benchmarks.bench_semantic_dedup --num-embeddings 200000
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.memory import measure

DIMENSIONS = 512
EPS = 0.05
_CHUNK = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-embeddings", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    lines = [
        f"{DIMENSIONS} dimensions, eps {EPS}, one cluster per 5,000, 100 iterations; a tenth are near copies. Both read the same Parquet file.",
        "",
        "| embeddings | tool | seconds | GiB of the largest process | duplicates |",
        "|---|---|---|---|---|",
    ]
    for count in (options.num_embeddings // 10, options.num_embeddings):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/embeddings.parquet"
            write_embeddings(count, path)
            for name, function in (
                ("winnow semantic_dedup, 2 workers", run_winnow),
                ("faiss and numpy, the paper's way", run_plain),
            ):
                cost = measure(function, path)
                lines.append(f"| {count:,} | {name} | {cost.seconds:.1f} | {cost.gib:.2f} | {cost.result:,} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def write_embeddings(count: int, path: str) -> None:
    """Write unit vectors around a thousand centres, every tenth a near copy of the one before."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(1000, DIMENSIONS)).astype(np.float32)
    schema = pa.schema([
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("uid", pa.string()),
        ("image_embedding", pa.list_(pa.float16())),
        ("status", pa.string()),
        ("error_message", pa.string()),
    ])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            vectors = centres[random.integers(0, 1000, size)] + random.normal(size=(size, DIMENSIONS)).astype(
                np.float32
            )
            vectors[9::10] = vectors[8::10][: len(vectors[9::10])] + 0.1 * random.normal(size=vectors[9::10].shape)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            offsets = pa.array(np.arange(size + 1, dtype=np.int32) * DIMENSIONS)
            numbers = np.arange(start, start + size)
            writer.write_table(
                pa.table(
                    {
                        "shard": pa.array(numbers // 10_000, pa.int32()),
                        "row": pa.array(numbers % 10_000, pa.int32()),
                        "uid": pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 32, "0"),
                        "image_embedding": pa.ListArray.from_arrays(
                            offsets, pa.array(vectors.astype(np.float16).reshape(-1))
                        ),
                        "status": pa.array(["success"] * size),
                        "error_message": pa.nulls(size, pa.string()),
                    },
                    schema=schema,
                )
            )


def run_winnow(path: str) -> int:
    """Run the operator; return the number of duplicates."""
    import duckdb

    from curate.executor import Executor
    from curate.operators.semantic_dedup import SemanticDedup
    from curate.pool_work import PoolWork

    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection, Executor(num_workers=2) as executor:
        relation = connection.sql(f"SELECT * FROM '{path}'")
        tables = SemanticDedup(eps=EPS).annotate(relation, PoolWork(Path(folder), executor))
        return sum(pc.sum(table.column("is_semantic_duplicate").cast(pa.int64())).as_py() for table in tables)


def run_plain(path: str) -> int:
    """Do the same with faiss and whole matrices; return the number of duplicates."""
    import faiss

    column = pq.read_table(path, columns=["image_embedding"]).column(0).combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32)
    num_clusters = max(1, round(len(vectors) / 5000))
    kmeans = faiss.Kmeans(DIMENSIONS, num_clusters, niter=100, spherical=True, seed=1234)
    kmeans.train(vectors)
    cosines, clusters = kmeans.index.search(vectors, 1)
    found = 0
    for cluster in range(num_clusters):
        members = np.flatnonzero(clusters[:, 0] == cluster)
        members = members[np.argsort(cosines[members, 0], kind="stable")]
        if len(members):
            similarity = np.triu(vectors[members] @ vectors[members].T, 1)
            found += int((similarity.max(axis=0) > 1 - EPS).sum())
    return found


if __name__ == "__main__":
    raise SystemExit(main())
