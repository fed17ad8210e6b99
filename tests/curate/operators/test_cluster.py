"""Clusters, and DataComp's rule that a cluster be some target's."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.embedding import Embeddings, normalise
from curate.fingerprint import fingerprint
from curate.kmeans import train_centroids
from curate.operators.cluster import Cluster
from schemas.errors import InputError
from tests.contract import check_pool_operator
from tests.embedding import clustered, embedding_rows

FINGERPRINT = "7ddb1ce1384aba2d3e5060f3783f799f39fb84b0fd211502b2373c6fe1d3e2f5"


def check(operator: Cluster, vectors: np.ndarray, **kinds: Any) -> dict[str, list[Any]]:
    pinned = FINGERPRINT if operator == Cluster() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=embedding_rows(vectors, **kinds)).to_pydict()


def test_clusters_hold_what_is_alike() -> None:
    vectors = clustered(400, 4, spread=0.05)
    # More clusters than groups: k-means may part a group, and where it starts badly join two.
    found = check(Cluster(num_clusters=16, num_nearest=3), vectors, missing=[0], lost=[1])
    ids = found["cluster_id"]
    groups: dict[int, set[int]] = {}
    for row in range(2, 400):
        groups.setdefault(ids[row], set()).add(row % 4)
    assert all(len(members) == 1 for members in groups.values())
    assert [found["cluster_size"][row] for row in range(2, 400)] == [ids.count(ids[row]) for row in range(2, 400)]
    assert all(similarity > 0.8 for similarity in found["cluster_similarity"][2:])
    listed = zip(ids[2:], found["cluster_ids"][2:], strict=True)
    assert all(nearest[0] == own and len(set(nearest)) == 3 for own, nearest in listed)
    assert found["cluster_has_target"] == [None] * 400
    assert found["cluster_ids"][:2] == [None, None]
    assert found["error"][:3] == ["no image_embedding", "no image: gone", None]


def test_the_nearest_centroids_are_those_of_a_search_of_all() -> None:
    """MLCD's labels (arXiv 2407.17331): every centroid's cosine is computed, in float64, and the largest are the list."""
    vectors = clustered(200, 6, spread=0.6)
    found = check(Cluster(num_clusters=12, num_nearest=5), vectors)
    halves = normalise(vectors.astype(np.float16)).astype(np.float16)
    centroids = train_centroids(Embeddings(halves, np.arange(200), 200), 12, iterations=20, seed=1234)
    cosines = halves.astype(np.float64) @ centroids.T.astype(np.float64)
    listed = np.array(found["cluster_ids"])
    expected = np.sort(cosines, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(np.take_along_axis(cosines, listed, axis=1), expected, atol=1e-5)
    assert all(len(set(row)) == 5 for row in listed.tolist())
    assert listed[:, 0].tolist() == found["cluster_id"]


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_a_cluster_is_kept_where_it_is_the_nearest_of_a_target(tmp_path: Path, suffix: str) -> None:
    vectors = clustered(200, 4, spread=0.05)
    targets = vectors[[0, 4, 2]] * 7  # of any length: they are scaled
    path = tmp_path / f"targets.{suffix}"
    if suffix == "npy":
        np.save(path, targets)
    elif suffix == "npz":
        np.savez(path, l14_img=targets)
    else:
        pq.write_table(pa.table({"uid": list("abc"), "image_embedding": list(targets)}), path)
    found = check(Cluster(num_clusters=16, targets=str(path)), vectors)
    hit = {
        found["cluster_id"][row] for row in (0, 4, 2)
    }  # a target is a row here, so its nearest centroid is the row's
    assert found["cluster_has_target"] == [own in hit for own in found["cluster_id"]]
    assert {row % 4 for row in range(200) if found["cluster_has_target"][row]} == {0, 2}


def test_the_same_targets_elsewhere_are_the_same(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, clustered(3, 3))
    first, second = (Cluster(targets=str(tmp_path / name)) for name in ("a.npy", "b.npy"))
    assert fingerprint(first, {}) == fingerprint(second, {}) != fingerprint(Cluster(), {})


def test_targets_of_another_model_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.ones((2, 3)))
    with pytest.raises(InputError, match="have 3 dimensions, the pool's embeddings 16"):
        check(Cluster(targets=str(tmp_path / "t.npy")), clustered(20, 2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", "must be .npy, .npz or .parquet"),
        ("t.npy", np.ones(3), "shape \\(3,\\)"),
        ("t.npy", np.ones((2, 3), np.int64), "int64"),
    ],
)
def test_files_that_are_no_embeddings_are_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(InputError, match=message):
        check(Cluster(targets=str(path)), clustered(20, 2))


def test_more_clusters_than_rows_are_as_many_as_rows() -> None:
    found = check(Cluster(num_clusters=50), clustered(7, 7, spread=0))
    assert len(set(found["cluster_id"])) == 7
    assert check(Cluster(), clustered(2, 1), missing=[0, 1])["cluster_id"] == [None, None]


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Cluster(num_nearest=0)
