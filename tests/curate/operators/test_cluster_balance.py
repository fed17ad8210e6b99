"""Crowded clusters are cut, small ones stay whole."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.fingerprint import fingerprint
from curate.operators.cluster_balance import ClusterBalance
from schemas.errors import InputError
from tests.contract import check_pool_operator

FINGERPRINT = "f7e14cfe0044e812fa5a19a65053ff637545e5176baa7246b78182cfa338fa47"
IDS: list[int | None] = [*[7] * 600, *[2] * 90, *[5] * 10, None, None]


def check(operator: ClusterBalance, ids: list[int | None] = IDS) -> dict[str, list[Any]]:
    rows = pa.table({
        "shard": pa.array([row // 100 for row in range(len(ids))], pa.int32()),
        "row": pa.array([row % 100 for row in range(len(ids))], pa.int32()),
        "uid": [f"{row:032x}" for row in range(len(ids))],
        "cluster_id": pa.array(ids, pa.int32()),
        "status": ["failed_to_download" if row == 701 else "success" for row in range(len(ids))],
        "error_message": pa.array(["gone" if row == 701 else None for row in range(len(ids))], pa.string()),
    })
    pinned = FINGERPRINT if operator == ClusterBalance() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=rows).to_pydict()


def test_clusters_are_cut_to_about_t() -> None:
    found = check(ClusterBalance(t=90))
    assert [found["cluster_balance_probability"][row] for row in (0, 600, 690)] == pytest.approx([0.15, 1.0, 1.0])
    kept = np.array(found["is_cluster_balance_kept"][:700])
    assert kept[600:].all()
    assert abs(kept[:600].sum() - 90) < 4 * math.sqrt(90)
    assert found["error"][699:] == [None, "no cluster_id", "no image: gone"]
    assert found["cluster_balance_weight"][700] is None


def test_weights_have_a_mean_of_one_and_level_the_clusters() -> None:
    found = check(ClusterBalance(alpha=1.0))
    weights = np.array(found["cluster_balance_weight"][:700])
    assert weights.mean() == pytest.approx(1.0)
    assert weights[:600].sum() == pytest.approx(weights[600:690].sum()) == pytest.approx(weights[690:].sum())
    assert set(check(ClusterBalance(alpha=0.0))["cluster_balance_weight"][:700]) == {1.0}


def test_t_is_found_from_a_size() -> None:
    found = check(ClusterBalance(target_size=200))
    assert sum(p for p in found["cluster_balance_probability"] if p is not None) == pytest.approx(200, abs=1e-3)


def test_a_pool_without_clusters_is_all_errors() -> None:
    assert check(ClusterBalance(), [None, None])["cluster_balance_probability"] == [None, None]


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="alpha 0 to 1"):
        ClusterBalance(alpha=2)
