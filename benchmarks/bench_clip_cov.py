"""clip_cov over many pairs, beside the published notebook's way: a whole matrix of similarities per class, one global sort per update.

python -m benchmarks clip_cov                              # 1 million pairs of 512 numbers, and 100,000; a thousand classes
python -m benchmarks.bench_clip_cov --num-pairs 200000
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

DIMENSIONS, NUM_CLASSES, FRACTION, UPDATE_EVERY = 512, 1000, 0.1, 20
_CHUNK = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pairs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    lines = [
        f"{DIMENSIONS} dimensions, {NUM_CLASSES} classes, {FRACTION:.0%} picked, scores lowered every {UPDATE_EVERY} picks of a class. Both "
        "read the same Parquet file.",
        "",
        "| pairs | tool | seconds | GiB of the largest process | picks both made |",
        "|---|---|---|---|---|",
    ]
    for count in (options.num_pairs // 10, options.num_pairs):
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(count, folder)
            ours, plain = measure(run_winnow, folder), measure(run_plain, folder)
            both = len(set(ours.result) & set(plain.result)) / len(plain.result)
            for name, cost in (("winnow clip_cov, 2 workers", ours), ("numpy, the notebook's way", plain)):
                lines.append(f"| {count:,} | {name} | {cost.seconds:.1f} | {cost.gib:.2f} | {both:.1%} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def write_pairs(count: int, folder: str) -> None:
    """Write pairs around the labels, a fifth of them mismatched, and the labels."""
    random = np.random.default_rng(0)
    labels = random.normal(size=(NUM_CLASSES, DIMENSIONS)).astype(np.float32)
    np.save(f"{folder}/labels.npy", labels)
    lists = pa.list_(pa.float16())
    names = ("shard", "row", "uid", "image_embedding", "text_embedding", "status", "error_message")
    kinds = (pa.int32(), pa.int32(), pa.string(), lists, lists, pa.string(), pa.string())
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    with pq.ParquetWriter(f"{folder}/pairs.parquet", schema) as writer:
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            noise = random.normal(size=(2, size, DIMENSIONS)).astype(np.float32)
            images = labels[random.integers(0, NUM_CLASSES, size)] + noise[0]
            texts = images + noise[1]
            texts[::5] = np.roll(texts[::5], 1, axis=0)
            numbers = np.arange(start, start + size)
            columns = [
                pa.array(numbers // 10_000, pa.int32()),
                pa.array(numbers % 10_000, pa.int32()),
                pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 32, "0"),
                *(_lists(vectors) for vectors in (images, texts)),
                pa.array(["success"] * size),
                pa.nulls(size, pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _lists(vectors: np.ndarray) -> pa.Array:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * DIMENSIONS)
    return pa.ListArray.from_arrays(offsets, pa.array(unit.astype(np.float16).reshape(-1)))


def run_winnow(folder: str) -> list[int]:
    """Run the operator; return the rows picked."""
    import duckdb

    from curate.executor import Executor
    from curate.operators.clip_cov import ClipCov
    from curate.pool_work import PoolWork

    operator = ClipCov(labels=f"{folder}/labels.npy", fraction=FRACTION, update_every=UPDATE_EVERY)
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as connection, Executor(num_workers=2) as executor:
        relation = connection.sql(f"SELECT * FROM '{folder}/pairs.parquet'")
        kept = [
            table.column("is_clip_cov_kept") for table in operator.annotate(relation, PoolWork(Path(scratch), executor))
        ]
        return [int(row) for row in np.flatnonzero(np.concatenate([column.to_numpy() for column in kept]))]


def run_plain(folder: str) -> list[int]:
    """Do the same with whole matrices in memory; return the rows picked."""
    table = pq.read_table(f"{folder}/pairs.parquet", columns=["image_embedding", "text_embedding"])
    images, texts = (
        table
        .column(name)
        .combine_chunks()
        .flatten()
        .to_numpy(zero_copy_only=False)
        .reshape(table.num_rows, -1)
        .astype(np.float32)
        for name in table.column_names
    )
    labels = np.load(f"{folder}/labels.npy")
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)
    classes = np.concatenate([
        (images[at : at + _CHUNK] @ labels.T).argmax(axis=1) for at in range(0, len(images), _CHUNK)
    ])
    members = [np.flatnonzero(classes == number) for number in range(NUM_CLASSES)]
    similarity, cross, centrality = {}, np.zeros(len(images)), np.zeros(len(images))
    for number, own in enumerate(members):
        similarity[number] = np.maximum(images[own] @ texts[own].T, 0)
        cross[own] = (similarity[number].sum(axis=0) + similarity[number].sum(axis=1)) / max(len(own), 1)
        for mine, other in ((images, texts), (texts, images)):
            centre = other[own].sum(axis=0)
            centrality[own] += mine[own] @ centre / max(float(np.linalg.norm(centre)), 1e-6)
    label = (texts * labels[classes]).sum(axis=1)
    score = cross + 2 * (images * texts).sum(axis=1) + label / 2 - centrality
    return _pick(score, classes, members, similarity, cross, label)


def _pick(
    score: np.ndarray,
    classes: np.ndarray,
    members: list[np.ndarray],
    similarity: dict[int, np.ndarray],
    cross: np.ndarray,
    label: np.ndarray,
) -> list[int]:
    picked: list[int] = []
    taken: list[list[int]] = [[] for _ in members]
    order = np.argsort(score)
    while len(picked) < int(len(score) * FRACTION):
        best, order = int(order[-1]), order[:-1]
        picked.append(best)
        number = int(classes[best])
        taken[number].append(best)
        if len(taken[number]) % UPDATE_EVERY == 0:
            own, new = members[number], np.array(taken[number][-UPDATE_EVERY:])
            places = np.searchsorted(own, new)
            lowered = similarity[number][:, places].sum(axis=1) + similarity[number][places].sum(axis=0)
            score[own] -= (lowered + cross[taken[number]].sum() + label[new].sum() / 2) / len(own)
            score[picked] = -np.inf
            order = np.argsort(score)[len(picked) :]
    return picked


if __name__ == "__main__":
    raise SystemExit(main())
