"""The schedule of one run: opens the columns it needs, and keeps in `<run>/sampling/` what later epochs owe to the model in training.

Weights by feedback and curated epochs depend on the model as it was when their epoch began. They are written, whole or not at all, before
the epoch's first step, so that a run that goes on in the middle of an epoch shows what an undisturbed one would.
"""

import io
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from schemas.errors import StaleDatasetError
from schemas.progress import Progress
from train.checkpoint import write_array, write_file
from train.columns import open_columns
from train.config import TrainConfig
from train.curation import RAW_BATCHES, Curated, Nearness, collect, read_names
from train.distributed import World
from train.feedback import feedback_factors
from train.index import Dataset
from train.inputs import InputMaker, Inputs, prefetch
from train.loader import Loader
from train.model import ImageTextModel
from train.neighbours import share_neighbours
from train.preflight import check_draws
from train.sample_losses import SampleLosses
from train.sampler import Indices, Weights, sample_indices
from train.sampling import SamplingConfig
from train.schedule import EpochShape, SampleValues, Schedule, describe_epoch
from train.uids import spell_uids

FOLDER = "sampling"
CURATED_COUNTS_FILE = "curated_counts.parquet"
# More than a loader reads ahead, were every epoch one step.
_KEPT_DESCRIPTIONS = 64


class RunSchedule:
    """What every epoch of a run shows; `prepare` comes before an epoch where the model in training has a say in it."""

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        sampling: SamplingConfig,
        run: Path,
        world: World,
        progress: Progress | None = None,
    ) -> None:
        self._data = data
        self._sampling = sampling
        self._run = run
        self._world = world
        requests = sampling.columns()
        opened = open_columns(data, list(dict.fromkeys(requests.values())), config.columns, progress)
        self.digest = opened.digest
        arrays = {use: opened.arrays[request.key] for use, request in requests.items()}
        self._labels = opened.array(requests["report"]) if sampling.report_by else None
        self._label_names = opened.label_names.get(requests["report"].key, ()) if sampling.report_by else ()
        self.shape = _shape(data, config, sampling)
        check_draws(config, self.shape, data.weights)
        neighbours = None
        if sampling.batches and sampling.batches.near:
            vectors, count = opened.array(requests["near"]), sampling.batches.candidates
            neighbours = share_neighbours(run, vectors, count, seed=config.seed, world=world)
        values = SampleValues(columns=arrays, neighbours=neighbours)
        self._schedule = Schedule(data.weights, self.shape, sampling, values, self._factors)
        self._names = read_names(sampling.curation.names) if sampling.curation else []
        self._pass: tuple[int, Indices] = (-1, np.zeros(0, dtype=np.int64))
        self._descriptions: dict[int, dict[str, float]] = {}

    @property
    def is_live(self) -> bool:
        """Whether the model in training has a say."""
        return self._sampling.feedback is not None or self._sampling.curation is not None

    def batches(self, epoch: int) -> Indices:
        """Return the rows of the dataset that an epoch shows, shape (steps, batch_size)."""
        if self._sampling.curation:
            found = self._load_curated(epoch).rows.reshape(self.shape.num_steps, self.shape.batch_size)
            weights = np.bincount(found.ravel(), minlength=self._data.num_samples).astype(np.float64)
        else:
            found, weights = self._schedule.batches(epoch), self._schedule.weights(epoch)
        # Kept for `describe`, which may be asked after the loader has gone on to the next epoch, in its thread.
        self._descriptions[epoch] = describe_epoch(found, weights, self._labels, self._label_names)
        self._descriptions.pop(epoch - _KEPT_DESCRIPTIONS, None)
        return found

    def weights(self, epoch: int) -> Weights:
        """Return the weights that an epoch is drawn by; its batches have been made."""
        return self._schedule.weights(epoch)

    def describe(self, step: int, caption_columns: npt.NDArray[np.int32] | None = None) -> dict[str, float]:
        """Return what `metrics.jsonl` says of the epoch that the update number `step` (from 1) was in; its batches have been made.

        `caption_columns`, this process's of that update, become the shares of its texts where the mixture has several columns; then
        every process must call.
        """
        found = self._descriptions[(step - 1) // self.shape.num_steps]
        mixture = self._data.mixture
        if caption_columns is None or sum(share > 0 for share in mixture.probabilities) < 2:
            return found
        own = np.bincount(caption_columns[caption_columns >= 0], minlength=len(mixture.columns))
        counts = self._world.sum(torch.tensor(own, device=self._world.device)).tolist()
        total = max(1, sum(counts))
        return found | {
            f"sampling/caption_{name}": count / total for name, count in zip(mixture.columns, counts, strict=True)
        }

    def prepare(self, step: int, model: ImageTextModel, losses: SampleLosses | None) -> None:
        """Write what the epoch that begins with `step` owes to the model, which is as the steps before left it; every process must call.

        In the middle of an epoch there is nothing to do: its file was written when it began.
        """
        epoch, step_in_epoch = divmod(step, self.shape.num_steps)
        if step_in_epoch:
            return
        if self._sampling.curation:
            self._curate(epoch, model)
        elif self._sampling.feedback and epoch and self._world.is_main:
            assert losses is not None, "the trainer records losses where feedback asks for them"
            factors = feedback_factors(losses.means(), self._sampling.feedback)
            write_array(self._file("factors", epoch), factors.astype(np.float32))
        self._world.wait()

    def finish(self, step: int) -> None:
        """Write how often curation chose each sample up to `step`: a weight for other runs, as CiT's by-product is."""
        if not self._sampling.curation or not self._world.is_main:
            return
        num_epochs = -(-step // self.shape.num_steps)
        counts = np.zeros(self._data.num_samples)
        for epoch in range(num_epochs):
            counts += np.bincount(self._load_curated(epoch).rows, minlength=len(counts))
        uids = spell_uids(self._data.uids)
        buffer = io.BytesIO()
        pq.write_table(pa.table({"uid": uids, "weight": counts}), buffer)
        write_file(self._run / CURATED_COUNTS_FILE, buffer.getvalue())

    def _curate(self, epoch: int, model: ImageTextModel) -> None:
        config = self._sampling.curation
        assert config is not None
        model.eval()
        nearness = Nearness(model, self._names, self._world)
        found = collect(
            config,
            num_samples=self.shape.epoch_samples,
            raw=self._raw,
            raw_size=RAW_BATCHES * self.shape.batch_size,
            position=self._load_curated(epoch - 1).position if epoch else 0,
            cosines=lambda rows: nearness.cosines([self._text(row) for row in rows.tolist()]),
        )
        model.train()
        # Shuffled: neighbours in the raw stream were judged together.
        order = sample_indices(np.ones(len(found.rows)), len(found.rows), self.shape.seed, epoch, replacement=True)
        if self._world.is_main:
            write_array(self._file("curated", epoch), np.append(found.rows[order], found.position))

    def _raw(self, start: int, stop: int) -> Indices:
        """Return the samples at some positions of the raw stream: the dataset's draws, pass after pass."""
        length = int(np.count_nonzero(self._data.weights))
        parts = []
        while start < stop:
            number, first = divmod(start, length)
            if self._pass[0] != number:
                drawn = sample_indices(self._data.weights, length, self.shape.seed, number, replacement=True)
                self._pass = (number, drawn)
            parts.append(self._pass[1][first : first + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _text(self, row: int) -> str:
        """Return a sample's likeliest text."""
        mixture = self._data.mixture
        captions = self._data.table.captions(row)[: len(mixture.columns)]
        return mixture.draw(captions, 0.0, 0.0)

    def _factors(self, epoch: int) -> Weights | None:
        if not self._sampling.feedback or not epoch:
            return None
        return self._load("factors", epoch).astype(np.float64)

    def _load_curated(self, epoch: int) -> Curated:
        found = self._load("curated", epoch)
        return Curated(found[:-1], int(found[-1]))

    def _load(self, kind: str, epoch: int) -> Indices:
        path = self._file(kind, epoch)
        if not path.exists():
            raise StaleDatasetError(f"{path} is missing, which an earlier epoch of this run wrote; start a new run")
        return np.asarray(np.load(path))

    def _file(self, kind: str, epoch: int) -> Path:
        return self._run / FOLDER / f"{kind}_{epoch:06d}.npy"


def follow_epochs(
    loader: Loader,
    maker: InputMaker,
    schedule: RunSchedule,
    model: ImageTextModel,
    losses: SampleLosses | None,
    start_step: int,
) -> Generator[Inputs]:
    """Yield the inputs of `start_step` and all later steps; a live schedule is prepared between one epoch's last step and the next's first."""
    if not schedule.is_live:
        yield from prefetch(loader.batches(start_step), maker)
        return
    step = start_step
    while True:
        schedule.prepare(step, model, losses)
        stop = (step // loader.steps_per_epoch + 1) * loader.steps_per_epoch
        with closing(prefetch(loader.batches(step, stop), maker)) as inputs:
            yield from inputs
        step = stop


def _shape(data: Dataset, config: TrainConfig, sampling: SamplingConfig) -> EpochShape:
    epoch_samples = config.epoch_samples or int(np.count_nonzero(data.weights))
    if sampling.curation:
        epoch_samples = sampling.curation.every * config.batch_size
    num_steps = max(1, epoch_samples // config.batch_size)
    return EpochShape(
        batch_size=config.batch_size,
        epoch_samples=epoch_samples,
        replacement=config.replacement,
        seed=config.seed,
        num_epochs=config.num_steps(num_steps) / num_steps,
    )
