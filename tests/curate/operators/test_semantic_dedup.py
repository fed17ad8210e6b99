"""SemDeDup: the golden case, brute force, thresholds, and any number of workers."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from curate.executor import Executor
from curate.fingerprint import fingerprint
from curate.operators.semantic_dedup import SemanticDedup, max_similarity_before
from curate.pool_work import PoolWork
from schemas.errors import InputError
from tests.contract import check_pool_operator
from tests.embedding import clustered, embedding_rows, unit

FINGERPRINT = "97baf58f4c6fac1793d4fa38c531dbcf87495582440abdea391f7d27443105a9"


def check(operator: SemanticDedup, vectors: np.ndarray, **kinds: Any) -> dict[str, list[Any]]:
    pinned = FINGERPRINT if operator == SemanticDedup() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=embedding_rows(vectors, **kinds)).to_pydict()


def brute_force(vectors: np.ndarray, clusters: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The rule as the paper has it: the upper triangle of each cluster's similarities."""
    halves = unit(vectors).astype(np.float16).astype(np.float64)
    found = np.full(len(vectors), -1.0)
    for cluster in np.unique(clusters[order]):
        members = order[clusters[order] == cluster]
        cosines = np.triu(halves[members] @ halves[members].T, 1)
        cosines[np.tril_indices(len(members))] = -1
        found[members] = cosines.max(axis=0)
    return found


def test_golden_order() -> None:
    """x3 falls only because of x2, which is removed itself."""

    def at(cosine: float) -> list[float]:
        return [cosine, float(np.sqrt(1 - cosine**2))]

    vectors = np.array([[1.0, 0.0], at(0.995), at(0.96), [0.0, 1.0]])
    found = max_similarity_before(vectors.astype(np.float32))
    assert found == pytest.approx([-1, 0.995, 0.983165, 0.28], abs=1e-5)
    assert (found > 1 - 0.03).tolist() == [False, True, True, False]


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_equals_brute_force_within_clusters(keep: str) -> None:
    vectors = clustered(600, 6, spread=0.15)
    found = check(SemanticDedup(num_clusters=6, keep=keep), vectors, missing=[5], lost=[7])
    there = np.array([row for row in range(600) if row not in (5, 7)])
    clusters = np.array([-1 if c is None else c for c in found["semantic_dedup_cluster"]])
    assert 3 <= len(np.unique(clusters[there])) <= 6
    halves = unit(vectors).astype(np.float16).astype(np.float64)
    # The centroid of a spherical cluster is the direction of its sum.
    to_centre = np.zeros(600)
    for cluster in range(6):
        members = clusters == cluster
        centre = halves[members].sum(axis=0)
        to_centre[members] = halves[members] @ (centre / np.linalg.norm(centre))
    order = there[np.argsort(to_centre[there] if keep == "hard" else -to_centre[there], kind="stable")]
    wanted = brute_force(vectors, clusters, order)
    got = np.array([np.nan if s is None else s for s in found["semantic_dedup_max_similarity"]])
    # Near ties in the distance to a centroid may fall the other way with faiss's rounding: few rows only.
    assert np.mean(np.abs(got[there] - wanted[there]) < 1e-3) > 0.98
    assert found["error"][5] == "no image_embedding"
    assert found["error"][7] == "no image: gone"
    assert found["is_semantic_duplicate"][5] is None
    assert [d for d in found["is_semantic_duplicate"] if d is not None] == (got[there] > np.float32(0.95)).tolist()


def test_tiles_equal_the_whole_matrix() -> None:
    vectors = clustered(20_000, 40, 32, spread=0.2).astype(np.float32)
    found = max_similarity_before(vectors)
    assert found[0] == -1
    for row in (1, 2047, 2048, 2049, 9999, 19_999):
        assert found[row] == pytest.approx(float((vectors[:row] @ vectors[row]).max()), abs=1e-5)


def test_of_equal_pictures_one_stays() -> None:
    vectors = np.repeat(clustered(4, 4), 5, axis=0)
    found = check(SemanticDedup(num_clusters=2, eps=0.01), vectors)
    kept = [row for row, is_duplicate in enumerate(found["is_semantic_duplicate"]) if not is_duplicate]
    assert kept == [0, 5, 10, 15]


def test_a_target_sets_the_threshold() -> None:
    found = check(SemanticDedup(target_ratio=0.4), clustered(500, 5))
    assert sum(found["is_semantic_duplicate"]) == 300
    kept = [
        s for s, d in zip(found["semantic_dedup_max_similarity"], found["is_semantic_duplicate"], strict=True) if not d
    ]
    removed = [
        s for s, d in zip(found["semantic_dedup_max_similarity"], found["is_semantic_duplicate"], strict=True) if d
    ]
    assert max(kept) < min(removed)


def test_a_random_order_follows_the_seed() -> None:
    vectors = clustered(300, 3, spread=0.1)
    first, again, other = (
        check(SemanticDedup(keep="random", seed=seed), vectors)["is_semantic_duplicate"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_any_number_of_workers_gives_the_same(tmp_path: Path) -> None:
    rows = embedding_rows(clustered(70_000, 30, 8))
    tables = []
    for workers in (0, 1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with duckdb.connect() as connection, Executor(num_workers=workers or None) as executor:
            if workers:
                executor.start()  # or so few rows would be compared in this process
            work = PoolWork(folder, executor if workers else None)
            tables.append([
                t.to_pydict() for t in SemanticDedup(iterations=5).annotate(connection.from_arrow(rows), work)
            ])
    assert tables[0] == tables[1] == tables[2]


def test_a_pool_without_embeddings_is_all_errors() -> None:
    found = check(SemanticDedup(), clustered(3, 1), missing=[0, 1, 2])
    assert found["error"] == ["no image_embedding"] * 3
    one = check(SemanticDedup(), clustered(1, 1))
    assert one["is_semantic_duplicate"] == [False]
    assert one["semantic_dedup_max_similarity"] == [-1.0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"eps": -0.1}, "eps is -0.1"),
        ({"target_ratio": 2.0}, "target_ratio is 2.0"),
        ({"keep": "best"}, "one of hard, random, easy"),
        ({"iterations": 0}, "at least 1"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SemanticDedup(**parameters)
