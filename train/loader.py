"""From a dataset to batches: draws the samples of a step, reads, decodes, crops.

dataset (index.py) -> order of the epoch (sampler.py) -> slice of this rank -> workers (workers.py): read (reader.py), decode, crop, text
-> Batch. The batch of a step is a function of (dataset, config, step) alone, whoever makes it: resuming at a step is asking for it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError, StaleDatasetError
from train.augment import augment_picture
from train.cache import SampleTable
from train.captions import Mixture
from train.config import Decode
from train.crop import BOX_NUMBERS, Box, aspect_box, choose_crop, fit_grid, random_box, stored_box, to_patches
from train.decoder import Decoder, use_one_thread
from train.draws import TextDraw
from train.index import Dataset
from train.reader import ImageReader, TarFile
from train.request import Text, View
from train.sampler import Indices, further_seeds, position_words, sample_indices, uniforms
from train.view_layout import ViewLayout, check_views
from train.workers import NUM_FACTS, Facts, Pixels, Request, WorkerPool

if TYPE_CHECKING:
    import torch

    from train.schedule import EpochShape

# Shards, offsets and sizes of images.
Places = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], npt.NDArray[np.integer]]


# Of the facts of a sample's first picture, the one that is not of the picture.
_CAPTION_FACT = NUM_FACTS - 1


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a batch holds; everything but the last three decides which pixels and texts a step shows.

    LoaderConfig(batch_size=4096)                                 # RandomResizedCrop of 90 to 100 % of the area, to 224 pixels
    LoaderConfig(batch_size=256, image_size=64, num_workers=0)    # decode in this process
    LoaderConfig(batch_size=256, replacement=False, epoch_samples=100_000)
    """

    batch_size: int  # samples per step over all ranks; the last, incomplete batch of an epoch is left out
    image_size: int = 224  # pixels, square
    # Above 0: pictures keep their aspect, as patches of so many pixels, in all no more than the square has; crops have the picture's aspect.
    patch_size: int = 0
    seed: int = 0
    # True: each sample floor or ceil of its expected number of times, which for equal weights is each exactly once. False: never twice
    # in an epoch, so that weights only matter where epoch_samples is less than the samples there are.
    replacement: bool = True
    epoch_samples: int = 0  # draws per epoch; 0: as many as samples with a positive weight
    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the picture's area that is kept
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of what is kept
    views: tuple[View, ...] = (View(),)  # pictures of each sample; none: nothing is read or decoded
    texts: tuple[Text, ...] = (Text(),)  # texts of each sample
    view_scale: tuple[float, float] = (0.08, 1.0)  # as `crop_scale`, of the augmented views
    # "gpu": JPEGs stay files, which gpu_decoder.py turns into pictures; "cpu": workers decode.
    decode: Decode = "cpu"
    num_workers: int = 2  # processes per rank; 0: decode in this process
    prefetch: int = 3  # batches being made ahead of the one in use
    pin_memory: bool = False  # for copies to a GPU beside its work

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.image_size < 1 or self.num_workers < 0 or self.prefetch < 1:
            raise InputError(
                f"batch_size, image_size and prefetch are at least 1 and num_workers at least 0, got {self}"
            )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(f"crop_scale is two shares of the area with 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise InputError(f"crop_ratio is two ratios with 0 < low <= high, got {self.crop_ratio}")
        check_views(self.views, self.image_size)
        if self.decode == "gpu" and (self.patch_size or any(view.number for view in self.views)):
            raise InputError(
                "decode gpu is for square pictures that no loss augments; leave it out for image_tower navit and for losses that compare views"
            )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a step, in the order of the epoch."""

    # uint8 (rows, views, 3, S, S), channels last in memory; the trainer normalises on its device. Views of a size of their own share what
    # is behind the others: `ViewLayout` tells where.
    # With `patch_size`: (rows, views, most patches, patch * patch * 3), zeros after a picture's own.
    pictures: "torch.Tensor"
    grids: "torch.Tensor | None" = None  # with `patch_size`: int32 (rows, views, 2), rows and columns of patches
    # With `decode="gpu"`: int32 (rows, views, 5). Where the first is above 0, so many bytes of a JPEG lie in the picture's place, and the
    # others are the box of it to show.
    files: "torch.Tensor | None" = None
    # Of each sample, the texts that the configuration asks for, one after the other; "" where there is none.
    captions: list[list[str]]
    # Places in the mixture of the columns that its draws are of, -1 where there was none to draw; None without pictures.
    caption_columns: npt.NDArray[np.int32] | None = None
    uids: list[str]
    indices: Indices  # rows of the dataset
    seeds: list[int]  # one per sample, for whatever else is drawn
    step: int
    epoch: int

    @property
    def images(self) -> "torch.Tensor":
        """The first view: uint8 (rows, 3, S, S)."""
        return self.pictures[:, 0]

    @property
    def texts(self) -> list[str]:
        """The first text of each sample."""
        return [texts[0] for texts in self.captions]


class EpochOrder(Protocol):
    """Says what epochs show."""

    @property
    def shape(self) -> "EpochShape":
        """How large they are."""

    def batches(self, epoch: int) -> Indices:
        """Return the rows of the dataset that an epoch shows, shape (steps, batch_size)."""


class Loader:
    """Makes the batches of one rank; a context manager, whose end stops the workers."""

    def __init__(
        self,
        dataset: Dataset,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        partners: Mapping[str, Indices] | None = None,
        crop_boxes: Path | None = None,
        schedule: "EpochOrder | None" = None,
    ) -> None:
        """`partners`: for each column of uids that a view names, the row of that sample for every row of the dataset.

        `crop_boxes`: the .npy file of stored crops, (samples, crops x 4), which pictures that are not augmented show in place of random ones.
        `schedule` says what epochs show, in place of draws by weight alone.
        """
        if config.batch_size % world_size:
            raise InputError(
                f"batch_size {config.batch_size} is not a multiple of the {world_size} processes; choose one that is"
            )
        self.dataset = dataset
        self.config = config
        self._rank = rank
        self._crop_boxes = crop_boxes
        if crop_boxes is not None and config.patch_size:
            raise InputError("train.crop_boxes is for square pictures; leave it out for image_tower navit")
        self._rows = config.batch_size // world_size
        self._schedule = schedule
        self.epoch_samples = config.epoch_samples or int(np.count_nonzero(dataset.weights))
        if schedule is not None:
            self.epoch_samples = schedule.shape.epoch_samples
        self.steps_per_epoch = self.epoch_samples // config.batch_size
        if not dataset.weights.any():
            raise InputError(f"none of the {dataset.num_samples} samples has a weight above 0; correct the weights")
        if not self.steps_per_epoch:
            raise InputError(
                f"an epoch of {self.epoch_samples} samples does not fill one batch of {config.batch_size}; lower batch_size to that or less, "
                "or let an epoch show samples several times with epoch_samples"
            )
        self._order: tuple[int, Indices] = (-1, np.zeros((0, 0), dtype=np.int64))
        draws = [TextDraw.resolve(text, dataset.table.columns) for text in config.texts]
        job = _TrainJob(dataset.table, dataset.tars, dataset.mixture, config, draws, partners or {}, crop_boxes)
        self._pool = WorkerPool(
            job,
            max_rows=self._rows,
            image_size=config.image_size,
            num_workers=config.num_workers,
            prefetch=config.prefetch,
            num_views=ViewLayout(config.views, config.image_size).num_slots,
        )

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """What the batches depend on, as a hash: a run may only go on with the loader that has its fingerprint."""
        chosen = (
            self.config.batch_size,
            self.config.image_size,
            self.config.seed,
            self.config.replacement,
            self.epoch_samples,
            self.config.crop_scale,
            self.config.crop_ratio,
            *((self.config.views, self.config.texts, self.config.view_scale) if self._draws_further else ()),
            *((f"patches of {self.config.patch_size}",) if self.config.patch_size else ()),
            *(("stored crops",) if self._crop_boxes else ()),
            *(("decode gpu",) if self.config.decode == "gpu" else ()),
        )
        return hashlib.sha256(f"{self.dataset.fingerprint} {chosen}".encode()).hexdigest()

    @property
    def _draws_further(self) -> bool:
        return self.config.views != (View(),) or self.config.texts != (Text(),)

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the running workers."""
        return self._pool.pids

    def batches(self, start_step: int = 0, stop_step: int | None = None) -> Iterator[Batch]:
        """Yield the batches of step `start_step` and every later one, epoch after epoch, without end or up to `stop_step`.

        An image that cannot be read ends it with a `StaleDatasetError` that names the tar and the member: what a build wrote was readable.
        """
        import torch

        for filled in self._pool.run(self._requests(start_step, stop_step)):
            step, epoch, first = filled.request.key
            images = torch.from_numpy(filled.images)
            width = len(filled.texts) // self._rows
            facts = torch.from_numpy(filled.facts).reshape(self._rows, -1, NUM_FACTS)
            yield Batch(
                pictures=self._arrange(images.pin_memory() if self.config.pin_memory else images),
                grids=facts[..., :2] if self.config.patch_size else None,
                files=facts[..., :_CAPTION_FACT] if self.config.decode == "gpu" else None,
                captions=[filled.texts[row * width : (row + 1) * width] for row in range(self._rows)],
                seeds=further_seeds(self.config.seed, epoch, first, first + self._rows),
                uids=self.dataset.table.uids(filled.request.indices),
                indices=filled.request.indices,
                caption_columns=facts[:, 0, _CAPTION_FACT].numpy() if self.config.views else None,
                step=step,
                epoch=epoch,
            )
            del filled, images  # the worker pool reuses memory that nobody refers to

    def _arrange(self, images: "torch.Tensor") -> "torch.Tensor":
        views, patch = ViewLayout(self.config.views, self.config.image_size).num_slots, self.config.patch_size
        if patch:
            return images.reshape(self._rows, views, (self.config.image_size // patch) ** 2, patch * patch * 3)
        return images.reshape(self._rows, views, *images.shape[1:]).permute(0, 1, 4, 2, 3)

    def close(self) -> None:
        """Stop the workers; a later `batches` starts new ones."""
        self._pool.close()

    def _requests(self, start_step: int, stop_step: int | None) -> Iterator[Request]:
        step = start_step
        while stop_step is None or step < stop_step:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            first = step_in_epoch * self.config.batch_size + self._rank * self._rows
            yield Request((step, epoch, first), self._epoch_order(epoch)[step_in_epoch])
            step += 1

    def _epoch_order(self, epoch: int) -> Indices:
        """Return this rank's rows of an epoch, shape (steps, rows): the other ranks' are not kept."""
        if self._order[0] != epoch:
            whole = self._draw_epoch(epoch)
            start = self._rank * self._rows
            self._order = (epoch, whole[:, start : start + self._rows].copy())
        return self._order[1]

    def _draw_epoch(self, epoch: int) -> Indices:
        """Return the rows of every rank, shape (steps, batch_size)."""
        if self._schedule is not None:
            return self._schedule.batches(epoch)
        config = self.config
        drawn = sample_indices(
            self.dataset.weights, self.epoch_samples, config.seed, epoch, replacement=config.replacement
        )
        return drawn[: self.steps_per_epoch * config.batch_size].reshape(self.steps_per_epoch, config.batch_size)


@dataclass
class _TrainJob:
    """Fills a training batch; what it draws is addressed by the position in the epoch."""

    table: SampleTable
    tars: Sequence[TarFile]
    mixture: Mixture
    config: LoaderConfig
    draws: Sequence[TextDraw]
    partners: Mapping[str, Indices]
    crop_boxes: Path | None

    def __post_init__(self) -> None:
        # Mapped by every worker: of a hundred million pictures they are gigabytes.
        self._boxes = None if self.crop_boxes is None else np.load(self.crop_boxes, mmap_mode="r").view(np.ndarray)
        self._reader = ImageReader(self.tars)
        self._decoder = Decoder()

    def __reduce__(self) -> "tuple[type[_TrainJob], tuple[object, ...]]":
        return type(self), (
            self.table,
            self.tars,
            self.mixture,
            self.config,
            self.draws,
            self.partners,
            self.crop_boxes,
        )

    def start(self) -> None:
        use_one_thread()

    def fill(self, key: tuple[int, ...], first: int, indices: Indices, images: Pixels, facts: Facts) -> list[str]:
        _, epoch, position = key
        start = position + first
        draws = uniforms(position_words(self.config.seed, epoch, start, start + len(indices)))
        seeds = further_seeds(self.config.seed, epoch, start, start + len(indices))
        layout = ViewLayout(self.config.views, self.config.image_size)
        for number, view in enumerate(layout.whole):
            own = slice(number, None, layout.num_slots)
            if self.config.patch_size:
                self._fill_native(view, indices, draws, images[own], facts[own])
            else:
                self._fill_view(view, indices, draws, seeds, images[own], facts[own])
        small = {view: layout.pictures(images, view) for view in self.config.views if view.size}
        if small:
            self._fill_small(small, indices, seeds)
            layout.clear_rest(images)
        texts: list[str] = []
        for row, (index, draw, seed) in enumerate(zip(indices.tolist(), draws, seeds, strict=True)):
            captions = self.table.captions(index)
            drawn, column = self.mixture.choose(captions, float(draw[0]), float(draw[1]))
            if self.config.views:
                facts[row * layout.num_slots, _CAPTION_FACT] = column
            for number, source in enumerate(self.draws):
                texts += source.draw(captions, drawn, seed, number)
        return texts

    def _fill_view(
        self,
        view: View,
        indices: Indices,
        draws: npt.NDArray[np.float64],
        seeds: Sequence[int],
        images: Pixels,
        facts: Facts,
    ) -> None:
        config = self.config
        if view.column:
            indices = self.partners[view.column][indices]
        # An augmented view draws from a generator of its own, seeded like everything else by the position.
        further = [Random(seed ^ view.number) for seed in seeds] if view.number else []
        scale = _scale(view, config)
        stored = None if self._boxes is None or view.number else _show_stored(self._boxes, indices, seeds)

        def choose(row: int) -> Callable[[int, int], Box]:
            if stored is not None:
                return partial(stored_box, stored[row])
            own = _crop_draws(further[row]) if further else draws[row, 2:]
            return lambda height, width: random_box(height, width, own, scale, config.crop_ratio)

        def put(row: int, data: bytes) -> None:
            if config.decode == "gpu":
                self._decoder.pack(data, choose(row), images[row], facts[row])
            else:
                self._decoder.crop(data, choose(row), images[row])

        read_images(self._reader, self._places(indices), put)
        for image, generator in zip(images, further, strict=False):
            augment_picture(image, generator)

    def _fill_small(self, views: Mapping[View, Pixels], indices: Indices, seeds: Sequence[int]) -> None:
        """Fill all views of a size of their own from one decode of each picture, augmented as every further view is."""

        def put(row: int, data: bytes) -> None:
            generators = [Random(seeds[row] ^ view.number) for view in views]
            chosen = [
                partial(
                    random_box,
                    draws=_crop_draws(generator),
                    scale=_scale(view, self.config),
                    ratio=self.config.crop_ratio,
                )
                for view, generator in zip(views, generators, strict=True)
            ]
            outs = [pictures[row] for pictures in views.values()]
            self._decoder.crops(data, chosen, outs)
            for picture, generator in zip(outs, generators, strict=True):
                augment_picture(picture, generator)

        read_images(self._reader, self._places(indices), put)

    def _fill_native(
        self, view: View, indices: Indices, draws: npt.NDArray[np.float64], images: Pixels, facts: Facts
    ) -> None:
        config, patch = self.config, self.config.patch_size
        most = (config.image_size // patch) ** 2
        if view.column:
            indices = self.partners[view.column][indices]

        def put(row: int, data: bytes) -> None:
            def allocate(box: Box) -> Pixels:
                rows, columns = fit_grid(box[2], box[3], patch, most)
                return np.empty((rows * patch, columns * patch, 3), dtype=np.uint8)

            picture = self._decoder.fit(
                data, lambda height, width: aspect_box(height, width, draws[row, 2:], config.crop_scale), allocate
            )
            patches = to_patches(picture, patch)
            target = images[row].reshape(-1)
            target[: patches.size] = patches.reshape(-1)
            target[patches.size :] = 0
            facts[row, :2] = picture.shape[0] // patch, picture.shape[1] // patch

        read_images(self._reader, self._places(indices), put)

    def _places(self, indices: Indices) -> "Places":
        return self.table.shard[indices], self.table.offset[indices], self.table.size[indices]


@dataclass
class CenterCropJob:
    """Fills a batch of an evaluation with the middle squares of pictures; here, so that its workers need not import torch.

    Unlike training, which is made for speed, it shows the very pixels of CLIP's own preprocessing (`Decoder.square`).
    """

    tars: Sequence[TarFile]
    shards: Indices
    offsets: Indices
    sizes: Indices
    # (n, 4): top, left, height and width of the part of each picture to take for the whole; a height of 0 is all of it.
    boxes: Indices | None = None
    on_white: bool = True  # transparent parts; False: transparency is dropped

    def __post_init__(self) -> None:
        self._reader = ImageReader(self.tars)
        self._decoder = Decoder()

    def __reduce__(self) -> "tuple[type[CenterCropJob], tuple[object, ...]]":
        return type(self), (self.tars, self.shards, self.offsets, self.sizes, self.boxes, self.on_white)

    def start(self) -> None:
        """Keep a worker to one thread."""
        use_one_thread()

    def fill(self, key: tuple[int, ...], first: int, indices: Indices, images: Pixels, facts: Facts) -> list[str]:
        """Read and decode the pictures; there are no texts."""
        del key, first, facts
        places = (self.shards[indices], self.offsets[indices], self.sizes[indices])

        def put(row: int, data: bytes) -> None:
            top, left, height, width = (0, 0, 0, 0) if self.boxes is None else self.boxes[indices[row]].tolist()
            box = (top, left, height, width) if height else None
            self._decoder.square(data, images[row], box=box, on_white=self.on_white)

        read_images(self._reader, places, put)
        return []


def _show_stored(boxes: npt.NDArray[Any], indices: Indices, seeds: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the crop that each draw shows, of those that are stored: (n, 4)."""
    parts = boxes.reshape(len(boxes), -1, BOX_NUMBERS)
    chosen: npt.NDArray[np.float32] = parts[indices, choose_crop(seeds, parts.shape[1])]
    return chosen


def _scale(view: View, config: LoaderConfig) -> tuple[float, float]:
    if view.scale:
        return view.scale[0], view.scale[1]
    return config.view_scale if view.number else config.crop_scale


def _crop_draws(generator: Random) -> npt.NDArray[np.float64]:
    return np.array([generator.random() for _ in range(22)])


def read_images(reader: ImageReader, places: Places, put: Callable[[int, bytes], None]) -> None:
    """Read the images at `places` and hand each to `put` with its row; what it cannot decode is named."""
    for row, data in enumerate(reader.read(*places)):
        try:
            put(row, data)
        except ValueError as error:
            where = reader.describe(int(places[0][row]), int(places[1][row]))
            raise StaleDatasetError(
                f"{where} is not a readable image ({error}); build the dataset again without it"
            ) from error
