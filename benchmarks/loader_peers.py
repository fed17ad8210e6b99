"""The loaders that `bench_loader` measures beside ours, each over the same pictures in its own format.

webdataset reads the tars of the dataset itself; mosaicml-streaming and litdata read shards that are written here first. None of the three
draws by weight: with webdataset one rejects samples, which then were read for nothing; the others show every sample equally often. They
are no dependencies of ours: `missing_peers` names those that are not installed.
"""

import importlib.util
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from train.decoder import use_one_thread

BATCH = 64
PREFETCH = 3
SHARD_BYTES = 1 << 24
# Long enough that no measurement meets the end of an epoch, where these start again.
EPOCH_SAMPLES = 200_000

Crop = Callable[[bytes], np.ndarray]
# Batches' sizes, and what ends the contestant.
Running = tuple[Iterator[int], Callable[[], None]]
PEERS = {"mosaicml-streaming": "streaming", "litdata": "litdata"}


def missing_peers() -> list[str]:
    """Return the peers that cannot be measured, by the names of their packages."""
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]


def start_webdataset(path: Path, workers: int, crop: Crop, *, is_rejecting: bool = False) -> Running:
    """Start a usual webdataset pipeline: shards and samples shuffled, batches collated in the workers.

    `is_rejecting` keeps a sample with a probability in proportion to its weight and draws one of its captions: both are in its JSON.
    """
    import webdataset

    def prepare(sample: dict[str, bytes]) -> tuple[np.ndarray, str]:
        return crop(sample["jpg"]), sample["txt"].decode()

    def is_kept(sample: dict[str, bytes]) -> bool:
        return generator.random() < json.loads(sample["json"])["weight"]

    def prepare_drawn(sample: dict[str, bytes]) -> tuple[np.ndarray, str]:
        return crop(sample["jpg"]), generator.choice(json.loads(sample["json"])["captions"])

    generator = random.Random(0)
    tars = sorted(str(tar) for tar in path.glob("*.tar"))
    pipeline = webdataset.WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=None, seed=0)
    if is_rejecting:
        pipeline = pipeline.select(is_kept)  # before the buffer, which then holds only what is shown
    pipeline = pipeline.shuffle(1000, initial=100).map(prepare_drawn if is_rejecting else prepare)
    return _start(pipeline.batched(BATCH, collation_fn=_collate), workers)


def write_streaming(folder: Path, images: Sequence[bytes], texts: Sequence[str]) -> None:
    """Write the samples as mosaicml-streaming's shards."""
    from streaming import MDSWriter

    with MDSWriter(columns={"jpg": "bytes", "txt": "str"}, out=str(folder), size_limit=SHARD_BYTES) as writer:
        for image, text in zip(images, texts, strict=True):
            writer.write({"jpg": image, "txt": text})


def start_streaming(folder: Path, workers: int, crop: Crop) -> Running:
    """Start mosaicml-streaming over local shards, shuffled by its own default."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Pictures(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> tuple[np.ndarray, str]:
            sample = super().__getitem__(at)
            return crop(sample["jpg"]), sample["txt"]

    clean_stale_shared_memory()
    pictures = Pictures(local=str(folder), shuffle=True, batch_size=BATCH, epoch_size=EPOCH_SAMPLES)
    return _start(pictures, workers, batch_size=BATCH)


def write_litdata(folder: Path, images: Sequence[bytes], texts: Sequence[str]) -> None:
    """Write the samples as litdata's chunks."""
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=SHARD_BYTES)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        cache[number] = {"jpg": image, "txt": text}
    cache.done()
    cache.merge()


def start_litdata(folder: Path, workers: int, crop: Crop) -> Running:
    """Start litdata over local chunks, shuffled; one pass follows the other in the same workers."""
    from litdata import StreamingDataLoader, StreamingDataset

    def prepare(sample: dict[str, object]) -> tuple[np.ndarray, str]:
        return crop(sample["jpg"]), str(sample["txt"])  # type: ignore[arg-type]

    loader = StreamingDataLoader(
        StreamingDataset(str(folder), shuffle=True, transform=prepare),
        batch_size=BATCH,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        collate_fn=_collate,
        persistent_workers=True,
    )

    def batches() -> Iterator[int]:
        while True:
            for _, texts in loader:
                yield len(texts)

    running = batches()
    return running, running.close


def _start(dataset: object, workers: int, *, batch_size: int | None = None) -> Running:
    """Start torch's loader, with batches made of samples where `batch_size` is given."""
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=_collate if batch_size else None,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        worker_init_fn=lambda _: use_one_thread(),
    )
    batches = iter(loader)
    return (len(texts) for _, texts in batches), batches._shutdown_workers  # type: ignore[attr-defined]


def _collate(samples: Sequence[tuple[np.ndarray, str]]) -> tuple[torch.Tensor, list[str]]:
    """Stack a batch: uint8 (n, 3, S, S), channels last in memory, as our loader's."""
    pixels = torch.from_numpy(np.stack([picture for picture, _ in samples])).permute(0, 3, 1, 2)
    return pixels, [text for _, text in samples]
