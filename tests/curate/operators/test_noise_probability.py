"""Planted mismatches have the high losses; what was never drawn is null."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fingerprint import fingerprint
from curate.mixture import fit_mixture
from curate.operators.noise_probability import NoiseProbability
from schemas.errors import InputError
from schemas.sample_loss import SAMPLE_LOSS_SCHEMA, SAMPLE_LOSSES_FILE
from tests.contract import check_pool_operator
from tests.train.dataset_builder import make_uid
from tests.train.training import SCENES, TINY, run_training, write_scenes

FINGERPRINT = "b214736c92d1dd526cf5d1b1db86a69d02b1b3883209369a4dacc12b5d81c9c3"
NUM_ROWS = 600
NEVER_DRAWN, LOST, ONCE = 7, 30, 45


def losses() -> np.ndarray:
    """Return losses of which the last fifth, the planted noise, are higher."""
    random = np.random.default_rng(1)
    values = random.normal(1.0, 0.35, NUM_ROWS)
    values[480:] = random.normal(3.0, 0.6, 120)
    return np.asarray(values.astype(np.float32))


def write(folder: Path, **changes: Any) -> Path:
    values = [None if row == NEVER_DRAWN else float(value) for row, value in enumerate(losses())]
    draws = [0 if row == NEVER_DRAWN else 1 if row == ONCE else 3 for row in range(NUM_ROWS)]
    rows = {"uid": [f"{row:032x}" for row in range(NUM_ROWS)], "loss": values, "num_draws": draws, **changes}
    # In another order, and with a sample that is not of the pool.
    table = pa.table(rows, schema=SAMPLE_LOSS_SCHEMA).take(np.random.default_rng(0).permutation(NUM_ROWS))
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / SAMPLE_LOSSES_FILE)
    return folder


def make_rows(num_rows: int = NUM_ROWS) -> pa.Table:
    return pa.table({
        "shard": pa.array([row // 100 for row in range(num_rows)], pa.int32()),
        "row": pa.array([row % 100 for row in range(num_rows)], pa.int32()),
        "uid": [f"{row:032x}" for row in range(num_rows)],
        "status": ["failed_to_download" if row == LOST else "success" for row in range(num_rows)],
        "error_message": pa.array(["gone" if row == LOST else None for row in range(num_rows)], pa.string()),
    })


def check(operator: NoiseProbability, rows: pa.Table | None = None) -> dict[str, list[Any]]:
    rows = make_rows() if rows is None else rows
    return check_pool_operator(operator, fingerprint=fingerprint(operator, {}), rows=rows).to_pydict()


def test_contract_and_values(tmp_path: Path) -> None:
    found = check(NoiseProbability(losses=str(write(tmp_path / "it's a run"))))
    values = losses().astype(np.float64)
    drawn = np.delete(values, NEVER_DRAWN)
    low, high = drawn.min(), drawn.max()
    mixture = fit_mixture(np.sort((drawn - low) / (high - low)), np.ones(NUM_ROWS - 1), 5e-4)
    wanted = mixture.upper_probability((values - low) / (high - low))
    rows = [row for row in range(NUM_ROWS) if row not in (NEVER_DRAWN, LOST)]
    probability = np.array([found["noise_probability"][row] for row in rows])
    assert probability == pytest.approx(wanted[rows].tolist(), abs=1e-3)
    assert [found["sample_loss"][row] for row in rows] == pytest.approx(values[rows].tolist())
    assert (probability[np.array(rows) >= 480] > 0.5).mean() > 0.9
    assert (probability[np.array(rows) < 480] > 0.5).mean() < 0.05
    for row, error in ((NEVER_DRAWN, None), (LOST, "no image: gone")):
        assert (found["sample_loss"][row], found["noise_probability"][row], found["error"][row]) == (None, None, error)
    assert found["error"].count(None) == NUM_ROWS - 1


def test_a_loss_of_too_few_draws_does_not_count(tmp_path: Path) -> None:
    found = check(NoiseProbability(losses=str(write(tmp_path)), min_draws=2))
    assert (found["noise_probability"][ONCE], found["error"][ONCE]) == (None, None)
    assert found["noise_probability"].count(None) == 3


def test_rows_of_other_pools_are_null(tmp_path: Path) -> None:
    found = check(NoiseProbability(losses=str(write(tmp_path))), make_rows(650))
    assert found["noise_probability"][600:] == [None] * 50
    nothing = write(tmp_path, loss=[None] * NUM_ROWS, num_draws=[0] * NUM_ROWS)
    assert check(NoiseProbability(losses=str(nothing)))["noise_probability"] == [None] * NUM_ROWS


def test_losses_of_a_run_are_read(tmp_path: Path) -> None:
    """The trainer's own file, of a run in which every sample was drawn."""
    dataset = write_scenes(tmp_path / "dataset", copies=1)
    done = run_training(dataset, tmp_path / "run", {**TINY, "epochs": 2, "replacement": False, "sample_losses": True})
    assert done.returncode == 0, done.stdout
    uids = [make_uid(number) for number in range(len(SCENES))]
    rows = make_rows(len(SCENES) + 1).set_column(2, "uid", [[*uids, "f" * 32]])
    found = check(NoiseProbability(losses=str(tmp_path / "run")), rows)
    drawn = [row for row in range(len(SCENES)) if row != LOST]
    assert all(found["sample_loss"][row] > 0 for row in drawn)
    assert all(0 <= found["noise_probability"][row] <= 1 for row in drawn)
    assert found["noise_probability"][-1] is None
    assert found["error"].count(None) == len(SCENES)


def test_the_fingerprint_is_pinned(tmp_path: Path) -> None:
    path = tmp_path / "losses.parquet"
    path.write_bytes(b"the digest is of these bytes")
    assert fingerprint(NoiseProbability(losses=str(path)), {}) == FINGERPRINT


def test_unusable_losses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no sample_losses\.parquet"):
        fingerprint(NoiseProbability(losses=str(tmp_path)), {})
    same = write(tmp_path, loss=[2.0] * NUM_ROWS, num_draws=[1] * NUM_ROWS)
    with pytest.raises(InputError, match="is 2: there is nothing to tell pairs apart by"):
        check(NoiseProbability(losses=str(same)))
    twice = write(tmp_path, uid=[f"{max(row, 1):032x}" for row in range(NUM_ROWS)])
    with pytest.raises(InputError, match=f"holds uid {1:032x} twice"):
        check(NoiseProbability(losses=str(twice)))
    with pytest.raises(InputError, match="min_draws must be at least 1"):
        NoiseProbability(losses=str(tmp_path), min_draws=0)
