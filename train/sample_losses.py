"""Remembers how well each sample was told apart: its contrastive loss, averaged over its draws, in `<run>/sample_losses.parquet`."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from schemas.errors import InputError
from schemas.sample_loss import SAMPLE_LOSS_SCHEMA, SAMPLE_LOSSES_FILE
from train.checkpoint import write_file
from train.contrast import pair_losses
from train.distributed import World
from train.index import Dataset
from train.loss import Outputs
from train.request import Request, Text, View
from train.sampler import Indices
from train.uids import spell_uids

_SUM, _DRAWS = "sample_losses.sum", "sample_losses.draws"


class SampleLosses:
    """The sums of all samples, 12 bytes each, on the first process; part of every checkpoint, so that going on is exact."""

    def __init__(self, dataset: Dataset, world: World, needs: tuple[Request, ...]) -> None:
        if View() not in needs or Text() not in needs:
            raise InputError(
                "sample_losses needs a loss that compares pictures with their texts, such as info_nce; turn sample_losses off"
            )
        self._dataset = dataset
        self._world = world
        count = dataset.num_samples if world.is_main else 0
        self._sums = torch.zeros(count, dtype=torch.float64)
        self._draws = torch.zeros(count, dtype=torch.int32)

    @torch.no_grad()
    def add(self, outputs: Outputs, indices: Indices) -> None:
        """Take in a step; every process must."""
        losses = self._world.gather(pair_losses(outputs)).double().cpu()
        rows = self._world.gather(torch.from_numpy(indices).to(self._world.device)).cpu()
        if self._world.is_main:
            self._sums.index_add_(0, rows, losses)
            self._draws.index_add_(0, rows, torch.ones(len(rows), dtype=torch.int32))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint must hold."""
        return {_SUM: self._sums, _DRAWS: self._draws}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `tensors` returned."""
        if self._world.is_main:
            self._sums, self._draws = tensors[_SUM].clone(), tensors[_DRAWS].clone()

    def means(self) -> npt.NDArray[np.float64]:
        """Return each sample's mean over its draws, NaN where it was never drawn; on the first process only."""
        return np.asarray((self._sums / self._draws).numpy())

    def write(self, run: Path) -> None:
        """Write the file with the samples drawn so far, whole or not at all."""
        drawn = torch.nonzero(self._draws)[:, 0]
        means = (self._sums[drawn] / self._draws[drawn]).float()
        uids = spell_uids(self._dataset.uids[drawn.numpy()])
        table = pa.table([uids, means.numpy(), self._draws[drawn].numpy()], schema=SAMPLE_LOSS_SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_file(run / SAMPLE_LOSSES_FILE, buffer.getvalue())
