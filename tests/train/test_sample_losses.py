from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from schemas.errors import InputError
from schemas.sample_loss import SAMPLE_LOSS_SCHEMA, check_sample_losses, find_sample_losses
from tests.train.dataset_builder import make_samples, make_uid, write_dataset
from tests.train.losses.outputs import array, log_softmax, make_outputs
from tests.train.processes import run_processes
from train.distributed import World
from train.index import Dataset
from train.request import Pooled, Text, View
from train.sample_losses import SampleLosses

NEEDS = (View(), Text())
ROWS = np.array([3, 0, 7, 3, 9, 1])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("sample_losses")
    return Dataset.open(str(write_dataset(root / "dataset", make_samples(12))), cache=str(root / "cache"))


def expected() -> np.ndarray:
    outputs = make_outputs(NEEDS, 6)
    logits = 7.0 * array(outputs, View()) @ array(outputs, Text()).T
    return -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))) / 2


def test_means_over_the_draws_of_each_sample(dataset: Dataset, tmp_path: Path) -> None:
    losses = SampleLosses(dataset, World(), NEEDS)
    losses.add(make_outputs(NEEDS, 6), ROWS)
    losses.add(make_outputs(NEEDS, 6), ROWS[::-1].copy())
    losses.write(tmp_path)
    table = pq.read_table(find_sample_losses(tmp_path))
    assert table.schema.equals(SAMPLE_LOSS_SCHEMA)
    check_sample_losses(table, "the file")
    values = expected()
    wanted = {
        make_uid(row): (values[row == ROWS].sum() + values[::-1][row == ROWS].sum()) for row in set(ROWS.tolist())
    }
    draws = {make_uid(row): 2 * int((row == ROWS).sum()) for row in set(ROWS.tolist())}
    found = {row["uid"]: row for row in table.to_pylist()}
    assert {uid: row["num_draws"] for uid, row in found.items()} == draws
    for uid, row in found.items():
        assert row["loss"] == pytest.approx(wanted[uid] / draws[uid], rel=1e-5)
    means = losses.means()
    assert means[3] == pytest.approx(found[make_uid(3)]["loss"], rel=1e-6)
    assert np.isnan(means[2])


def test_state_goes_through_a_checkpoint(dataset: Dataset) -> None:
    losses, other = (SampleLosses(dataset, World(), NEEDS) for _ in range(2))
    losses.add(make_outputs(NEEDS, 6), ROWS)
    other.load(losses.tensors())
    for each in (losses, other):
        each.add(make_outputs(NEEDS, 6), ROWS)
    assert all(torch.equal(other.tensors()[name], value) for name, value in losses.tensors().items())


def add_share(world: World) -> dict[str, torch.Tensor]:
    class Twelve:
        num_samples = 12

    losses = SampleLosses(Twelve(), world, NEEDS)
    rows = slice(world.rank * 6 // world.size, (world.rank + 1) * 6 // world.size)
    losses.add(make_outputs(NEEDS, 6, world), ROWS[rows])
    return losses.tensors()


def test_the_first_process_holds_them_all(dataset: Dataset, tmp_path: Path) -> None:
    alone = add_share(World())
    first, second = run_processes(2, tmp_path, add_share)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value)
        assert len(second[name]) == 0


def test_losses_without_pairs_are_refused(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="sample_losses needs a loss that compares pictures with their texts"):
        SampleLosses(dataset, World(), (Pooled(),))
