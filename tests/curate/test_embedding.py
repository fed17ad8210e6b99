"""Embeddings out of a relation, and out of files."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from curate.embedding import read_embeddings
from schemas.errors import InputError
from tests.embedding import clustered, embedding_rows


def test_rows_are_in_pool_order_whatever_order_they_come_in(tmp_path: Path) -> None:
    vectors = clustered(50, 5)
    rows = embedding_rows(vectors, missing=[3, 40], lost=[7])
    shuffled = rows.take(np.random.default_rng(0).permutation(50))
    with duckdb.connect() as connection:
        found = read_embeddings(connection.from_arrow(shuffled), tmp_path)
    there = [row for row in range(50) if row not in (3, 7, 40)]
    assert found.num_rows == 50
    assert found.rows.tolist() == there
    assert np.abs(found.matrix - vectors[there]).max() < 1e-3
    spread = found.spread(np.arange(len(there)), -1)
    assert [spread[row] for row in (0, 3, 4, 7)] == [0, -1, 3, -1]
    assert sum(len(block) for block in found.blocks(10)) == len(there)


def test_vectors_of_different_lengths_are_refused(tmp_path: Path) -> None:
    rows = embedding_rows(clustered(4, 2))
    lists = pa.array([[1.0, 0.0], [1.0, 0.0, 0.0], None, [0.0, 1.0]], pa.list_(pa.float32()))
    rows = rows.set_column(rows.schema.get_field_index("image_embedding"), "image_embedding", lists)
    with duckdb.connect() as connection, pytest.raises(InputError, match="different lengths: \\[2, 3\\]"):
        read_embeddings(connection.from_arrow(rows), tmp_path)


def test_no_vectors_at_all(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        found = read_embeddings(connection.from_arrow(embedding_rows(clustered(3, 1), missing=[0, 1, 2])), tmp_path)
    assert len(found.matrix) == 0
    assert found.num_rows == 3
