from pathlib import Path

import numpy as np
import pytest

from train import neighbours
from train.distributed import World
from train.neighbours import NEIGHBOURS_FILE, find_neighbours, share_neighbours


def exact(vectors: np.ndarray, count: int) -> np.ndarray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def test_neighbours_are_those_of_a_full_comparison_whatever_the_length() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 8)) * np.linspace(0.1, 9, 200)[:, None]
    np.testing.assert_array_equal(
        find_neighbours(vectors.astype(np.float16), 5, seed=0), exact(vectors.astype(np.float16).astype(np.float64), 5)
    )


def test_no_sample_is_its_own_neighbour_even_among_copies() -> None:
    vectors = np.repeat(np.eye(3), 4, axis=0)
    found = find_neighbours(vectors, 3, seed=0)
    assert not (found == np.arange(12)[:, None]).any()
    assert (found // 4 == np.arange(12)[:, None] // 4).all()


def test_places_beyond_the_dataset_are_empty() -> None:
    found = find_neighbours(np.eye(3), 5, seed=0)
    assert sorted(found[0].tolist()) == [-1, -1, -1, 1, 2]


def test_an_inverted_file_finds_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(1500, 8)).astype(np.float32)
    monkeypatch.setattr(neighbours, "_MOST_EXACT", 1000)
    found = find_neighbours(vectors, 5, seed=3)
    wanted = exact(vectors.astype(np.float64), 5)
    hits = np.mean([len(set(row) & set(other)) for row, other in zip(found.tolist(), wanted.tolist(), strict=True)]) / 5
    assert hits > 0.6
    np.testing.assert_array_equal(found, find_neighbours(vectors, 5, seed=3))


def test_a_run_keeps_what_was_found(tmp_path: Path) -> None:
    vectors = np.random.default_rng(2).normal(size=(20, 4))
    first = share_neighbours(tmp_path, vectors, 3, seed=0, world=World())
    assert (tmp_path / NEIGHBOURS_FILE).exists()
    np.testing.assert_array_equal(share_neighbours(tmp_path, vectors[::-1], 3, seed=0, world=World()), first)
