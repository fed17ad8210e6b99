"""The embeddings of a pool as one matrix on disk: what pool-wide operators over embeddings work on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.pool_rows import EVERYTHING, missing_errors, stream, stream_query
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

# Rows of a block that is worked on at once: 64 MiB of 512 half-precision numbers.
BLOCK_ROWS = 65_536
_READ_ROWS = 8_192
_LEAST_NORM = 1e-6


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Unit vectors in half precision, a row for every row of the pool that has one."""

    matrix: np.ndarray  # float16, (vectors, dimensions), mapped from disk
    rows: np.ndarray  # int64: the pool's row of each vector, rising
    num_rows: int  # of the pool

    def blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """Yield the matrix in blocks of rows, in memory."""
        for start in range(0, len(self.matrix), block_rows):
            yield np.asarray(self.matrix[start : start + block_rows])

    def spread(self, values: np.ndarray, missing: Any) -> np.ndarray:
        """Return a value per vector as one per row of the pool, `missing` where a row has no vector."""
        spread = np.full((self.num_rows, *values.shape[1:]), missing, values.dtype)
        spread[self.rows] = values
        return spread


def read_embeddings(pool: "DuckDBPyRelation", folder: Path, column: str = "image_embedding") -> Embeddings:
    """Copy an embedding column into a matrix in `folder`; raises InputError where vectors differ in length.

    Rows are put in their places as they come: sorting a pool's embeddings would cost more than all else that is done with them.
    """
    keys, has_vector = _read_places(pool, column)
    rows = np.flatnonzero(has_vector)
    places = keys[rows]
    matrix: np.ndarray | None = None
    query = f"SELECT shard, row, {column} FROM {EVERYTHING} WHERE {column} IS NOT NULL"
    for batch in stream_query(pool, query, batch_rows=_READ_ROWS):
        vectors = batch.column(2)
        lengths = np.unique(vectors.value_lengths().to_numpy())
        if matrix is None:
            shape = (len(rows), int(lengths[0]))
            matrix = np.memmap(folder / f"{column}.bin", np.float16, "w+", shape=shape)
        if lengths.tolist() != [matrix.shape[1]]:
            raise InputError(
                f"{column} has vectors of different lengths: {sorted({matrix.shape[1], *lengths.tolist()})}; all must come from one model"
            )
        values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, matrix.shape[1])
        matrix[np.searchsorted(places, _key(batch))] = normalise(values)
    return Embeddings(np.empty((0, 0), np.float16) if matrix is None else matrix, rows, len(keys))


def _read_places(pool: "DuckDBPyRelation", column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the key of every row, rising, and whether it has a vector."""
    keys, has_vector = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for batch in stream_query(pool, f"SELECT shard, row, {column} IS NOT NULL AS there FROM {EVERYTHING}"):
        keys.append(_key(batch))
        has_vector.append(batch.column(2).to_numpy(zero_copy_only=False))
    found = np.concatenate(keys)
    order = np.argsort(found, kind="stable")
    return found[order], np.concatenate(has_vector)[order]


def _key(batch: pa.RecordBatch) -> np.ndarray:
    shards, rows = (batch.column(index).to_numpy().astype(np.int64) for index in (0, 1))
    return np.asarray((shards << 32) | rows)


def take_rows(matrix: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen rows of a matrix on disk, in their order."""
    # Read in the order of the file, for the sake of the disk.
    ascending = np.argsort(chosen, kind="stable")
    taken = np.empty((len(chosen), matrix.shape[1]), matrix.dtype)
    taken[ascending] = matrix[chosen[ascending]]
    return taken


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return rows scaled to unit length, as float32; a row of zeros stays."""
    single = vectors.astype(np.float32)
    norms = np.linalg.norm(single, axis=1, keepdims=True)
    return np.asarray(single / np.maximum(norms, _LEAST_NORM))


def write_columns(
    pool: "DuckDBPyRelation",
    schema: pa.Schema,
    columns: dict[str, np.ndarray | pa.Array],
    has_vector: np.ndarray,
    *,
    what: str = "image_embedding",
) -> Iterator[pa.Table]:
    """Yield the tables of an operator: `columns` hold a value per row of the pool, null with the error "no `what`" where there is no vector."""
    start = 0
    for batch in stream(pool, "uid, status, error_message"):
        stop = start + batch.num_rows
        is_lost = ~has_vector[start:stop]
        table: dict[str, Any] = {"uid": batch.column("uid")}
        for field in schema:
            values = columns[field.name][start:stop]
            if isinstance(values, pa.Array):
                table[field.name] = values
            else:
                table[field.name] = pa.array(values.tolist() if values.ndim > 1 else values, field.type, mask=is_lost)
        yield pa.table({**table, "error": missing_errors(batch, is_lost, what)})
        start = stop


def read_vectors(path: str) -> np.ndarray:
    """Return the vectors of a file as unit rows of float32: .npy, .npz (its only array) or Parquet (its only list column)."""
    name = path.lower()
    if not Path(path).is_file():
        raise InputError(f"file of embeddings {path!r} does not exist")
    if name.endswith(".npy"):
        vectors = np.load(path, allow_pickle=False)
    elif name.endswith(".npz"):
        with np.load(path, allow_pickle=False) as arrays:
            if len(arrays.files) != 1:
                raise InputError(f"{path!r} holds the arrays {', '.join(arrays.files)}; give a file with one")
            vectors = arrays[arrays.files[0]]
    elif name.endswith(".parquet"):
        vectors = _read_parquet(path)
    else:
        raise InputError(f"{path!r} must be .npy, .npz or .parquet to be read as embeddings")
    if vectors.ndim != 2 or not len(vectors) or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(
            f"{path!r} holds {vectors.dtype} of shape {vectors.shape}; it must hold rows of floating-point numbers"
        )
    return normalise(vectors)


def _read_parquet(path: str) -> np.ndarray:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    lists = [
        field.name for field in table.schema if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    if len(lists) != 1:
        raise InputError(
            f"{path!r} has the list columns {', '.join(lists) or 'none'}; it must have one, the embeddings"
        )
    column = table.column(lists[0]).drop_null().combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if len(column) == 0 or len(flat) % len(column):
        raise InputError(f"{path!r} has no embeddings, or embeddings of different lengths")
    return np.asarray(flat.reshape(len(column), -1))
