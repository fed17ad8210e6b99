"""Loader throughput against `webdataset` on the same tars, and against bare decoding of the same bytes.

Everyone decodes and takes a random crop to 224 pixels, with the same number of processes; rounds alternate, ratios are of medians.
Uses the photos of `../shared/data` (or `--data FOLDER` of JPEGs) where there are some, reduced to the size that a pool keeps; otherwise
pictures with the spectrum of photos. Prints Markdown.

python -m benchmarks.bench_loader [--workers 2] [--rounds 5] [--seconds 4] [--side 256] [--data FOLDER]
"""

import argparse
import io
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image

from tests.train.dataset_builder import Sample, make_uid, write_dataset
from train.index import Dataset
from train.loader import Box, Decoder, Loader, LoaderConfig, random_box, use_one_thread

SIZE = 224
BATCH = 64
NUM_SAMPLES = 4000
NUM_PHOTOS = 1000
SCALE, RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
RNG = np.random.default_rng(0)
DECODER = Decoder()
SHARED = Path(__file__).parents[2] / "shared" / "data"

# Starts a contestant and returns batches' sizes, and what ends it.
Contestant = Callable[[], tuple[Iterator[int], Callable[[], None]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--side", type=int, default=256, help="short side of the stored photos, in pixels")
    parser.add_argument("--data", type=Path, default=SHARED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_one_thread()  # before the forks below: a thread pool does not survive one
    images, origin = make_images(options.data, options.side)
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        samples = [
            Sample(uid=make_uid(number), image=images[number % len(images)], captions={"alt_text": f"photo {number}"})
            for number in range(NUM_SAMPLES)
        ]
        path = write_dataset(Path(folder) / "dataset", samples, shard_size=500)
        workers = options.workers
        contestants: dict[str, Contestant] = {
            "bare decode and crop, bytes in memory": lambda: bare(images, workers),
            "Winnow loader": lambda: winnow(path, workers),
            "webdataset, decoding as the Winnow loader does": lambda: wds(path, workers, crop_fast),
            "webdataset, decoding with Pillow (bicubic)": lambda: wds(path, workers, crop_pillow),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        costs: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, start in contestants.items():
                rate, cost = measure(start, options.seconds)
                print(f"{name}: {rate:.0f}/s", file=sys.stderr, flush=True)
                rates[name].append(rate)
                costs[name].append(cost)
    size = statistics.mean(len(image) for image in images)
    print(
        f"{origin}, short side {options.side} px, {size / 1024:.1f} KiB each; {NUM_SAMPLES} samples in 8 tars, page cache warm."
    )
    print(
        f"Random crop of 90 to 100 % to {SIZE} px, batches of {BATCH}, {workers} processes, median of {options.rounds} rounds.\n"
    )
    print_table(rates, costs)


def print_table(rates: dict[str, list[float]], costs: dict[str, list[float]]) -> None:
    """Print what each contestant did, and the loader's ratio to it, which is taken within each round."""
    print("| | samples/s (lowest-highest) | CPU ms/sample | Winnow loader / this |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["Winnow loader"], values, strict=True))
        print(
            f"| {name} | {statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f}) "
            f"| {1000 * statistics.median(costs[name]):.2f} | {ratio:.2f} |"
        )


def measure(start: Contestant, seconds: float) -> tuple[float, float]:
    """Return samples per second and CPU seconds per sample, after start-up and after what was made ahead is used up."""
    batches, stop = start()
    try:
        for _ in range(24):
            next(batches)
        began, cpu, count = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - began < seconds:
            count += next(batches)
        return count / (time.perf_counter() - began), (cpu_seconds() - cpu) / count
    finally:
        stop()


def winnow(path: Path, workers: int) -> tuple[Iterator[int], Callable[[], None]]:
    """Start the loader under test."""
    dataset = Dataset.open(str(path), cache=str(path.parent / "cache"))
    loader = Loader(dataset, LoaderConfig(batch_size=BATCH, image_size=SIZE, num_workers=workers))
    return (len(batch.texts) for batch in loader.batches(0)), loader.close


def wds(path: Path, workers: int, crop: Callable[[bytes], np.ndarray]) -> tuple[Iterator[int], Callable[[], None]]:
    """Start a usual webdataset pipeline: shards and samples shuffled, batches collated in the workers."""

    def prepare(sample: dict[str, bytes]) -> tuple[np.ndarray, str]:
        return crop(sample["jpg"]), sample["txt"].decode()

    tars = sorted(str(tar) for tar in path.glob("*.tar"))
    pipeline = (
        webdataset
        .WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=None, seed=0)
        .shuffle(1000, initial=100)
        .map(prepare)
        .batched(BATCH, collation_fn=collate)
    )
    loader = torch.utils.data.DataLoader(
        pipeline, batch_size=None, num_workers=workers, prefetch_factor=3, worker_init_fn=lambda _: use_one_thread()
    )
    batches = iter(loader)
    return (len(texts) for _, texts in batches), batches._shutdown_workers


def collate(samples: Sequence[tuple[np.ndarray, str]]) -> tuple[torch.Tensor, list[str]]:
    """Stack a batch: uint8 (n, 3, S, S), channels last in memory, as the loader's."""
    pixels = torch.from_numpy(np.stack([picture for picture, _ in samples])).permute(0, 3, 1, 2)
    return pixels, [text for _, text in samples]


def crop_fast(data: bytes) -> np.ndarray:
    """Decode and crop with the loader's own function."""
    out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    DECODER.crop(data, partial(_random_box, RNG.random(22)), out)
    return out


def crop_pillow(data: bytes) -> np.ndarray:
    """Decode and crop as open_clip's transform does, without torchvision: Pillow, antialiased bicubic."""
    with Image.open(io.BytesIO(data)) as image:
        top, left, height, width = _random_box(RNG.random(22), image.height, image.width)
        box = (left, top, left + width, top + height)
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def _random_box(draws: np.ndarray, height: int, width: int) -> Box:
    return random_box(height, width, draws, SCALE, RATIO)


def bare(images: Sequence[bytes], workers: int) -> tuple[Iterator[int], Callable[[], None]]:
    """Start processes that decode and crop bytes they hold, and do nothing else."""
    context = multiprocessing.get_context("fork")
    counter = context.Semaphore(0)
    stopping = context.Event()
    processes = [
        context.Process(target=_decode_for_ever, args=(images, counter, stopping), daemon=True) for _ in range(workers)
    ]
    for process in processes:
        process.start()

    def batches() -> Iterator[int]:
        while True:
            counter.acquire()
            yield BATCH

    def stop() -> None:
        stopping.set()
        for process in processes:
            process.join()

    return batches(), stop


def _decode_for_ever(images: Sequence[bytes], counter: object, stopping: object) -> None:
    use_one_thread()
    rng, decoder = np.random.default_rng(os.getpid()), Decoder()
    out = np.empty((BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    while not stopping.is_set():  # type: ignore[attr-defined]
        chosen, draws = rng.integers(len(images), size=BATCH), rng.random((BATCH, 22))
        for number, picture, draw in zip(chosen.tolist(), out, draws, strict=True):
            decoder.crop(images[number], partial(_random_box, draw), picture)
        counter.release()  # type: ignore[attr-defined]


def make_images(folder: Path, side: int) -> tuple[list[bytes], str]:
    """Return photos of short side `side` as JPEGs of quality 95, and what they are."""
    files = sorted(path for path in folder.rglob("*.jpg") if path.parent.name in {"grocery", "coco", folder.name})
    if len(files) < NUM_PHOTOS // 10:
        return [
            _encode(_draw(number, side)) for number in range(NUM_PHOTOS // 4)
        ], "pictures with the spectrum of photos"
    chosen = random.Random(0).sample(files, min(NUM_PHOTOS, len(files)))
    images = []
    for path in chosen:
        rgb = simplejpeg.decode_jpeg(path.read_bytes())
        scale = side / min(rgb.shape[:2])
        images.append(_encode(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)))
    return images, f"{len(images)} real photos"


def _encode(rgb: np.ndarray) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=95, colorsubsampling="420")
    return data


def _draw(number: int, side: int) -> np.ndarray:
    """Return noise whose amplitude falls with frequency as that of photos does."""
    rng = np.random.default_rng(number)
    height, width = side, side * 4 // 3
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]) + 1 / side
    noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    planes = np.fft.irfft2(noise / frequency**1.2, s=(height, width))
    planes = planes[:1] + 0.3 * planes  # colours of a photo go together
    planes = (planes - planes.min()) / np.ptp(planes)
    return (255 * planes.transpose(1, 2, 0)).astype(np.uint8)


def cpu_seconds() -> float:
    """Return the processor time of this process and its children that live."""
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    ticks = 0
    for pid in (str(me), *children):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
