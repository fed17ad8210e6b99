"""Loader throughput against bare decoding of the same bytes, and against `webdataset`, mosaicml-streaming and litdata.

Everyone decodes and takes a random crop to 224 pixels, with the same number of processes; rounds alternate, ratios are of medians. The
loader draws by weight and one of five captions; what draws by weight elsewhere is webdataset with rejection of samples. Uses the photos
of `../shared/data` (or `--data FOLDER` of JPEGs) where there are some, reduced to the size that a pool keeps; otherwise pictures with the
spectrum of photos. mosaicml-streaming and litdata are measured where they are installed. Prints Markdown.

python -m benchmarks.bench_loader [--workers 2] [--rounds 5] [--seconds 3] [--side 256] [--data FOLDER]
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
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.loader_peers import (
    BATCH,
    missing_peers,
    start_litdata,
    start_streaming,
    start_webdataset,
    write_litdata,
    write_streaming,
)
from tests.train.dataset_builder import Sample, make_uid, write_dataset
from train.crop import Box, random_box
from train.decoder import Decoder, use_one_thread
from train.index import Dataset
from train.loader import Loader, LoaderConfig

SIZE = 224
NUM_SAMPLES = 4000
NUM_PHOTOS = 1000
SCALE, RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
RNG = np.random.default_rng(0)
DECODER = Decoder()
BARE, WEIGHTED = "bare decode and crop, bytes in memory", "Winnow loader, weighted, one of five captions"
SHARED = Path(__file__).parents[2] / "shared" / "data"

# Starts a contestant and returns batches' sizes, and what ends it.
Contestant = Callable[[], tuple[Iterator[int], Callable[[], None]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--side", type=int, default=256, help="short side of the stored photos, in pixels")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--without-peers", action="store_true", help="bare decode and our loader only, for many rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_one_thread()  # before the forks below: a thread pool does not survive one
    images, origin = make_images(options.data, options.side)
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        contestants = prepare(Path(folder), images, options.workers)
        if options.without_peers:
            contestants = {name: contestants[name] for name in (BARE, WEIGHTED)}
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
        f"Random crop of 90 to 100 % to {SIZE} px, batches of {BATCH}, {options.workers} processes, median of {options.rounds} rounds."
    )
    print("Weights are even in 0 to 1. Everyone decodes as the Winnow loader does, except where said.\n")
    print_table(rates, costs)
    for name in missing_peers():
        print(f"\n{name} is not installed: not measured.")


def prepare(folder: Path, images: Sequence[bytes], workers: int) -> dict[str, Contestant]:
    """Write the pictures in everybody's format; return the contestants by name."""
    rng = random.Random(1)
    weights = [rng.random() for _ in range(NUM_SAMPLES)]
    pictures = [images[number % len(images)] for number in range(NUM_SAMPLES)]
    texts = [
        [f"photo {number}", *(f"rewrite {part} of {number}" for part in range(4))] for number in range(NUM_SAMPLES)
    ]
    samples = [
        Sample(
            uid=make_uid(number),
            image=pictures[number],
            captions={"alt_text": texts[number][0], "rewrite": texts[number][1:]},
            weight=weights[number],
            extra={"weight": weights[number], "captions": texts[number]},
        )
        for number in range(NUM_SAMPLES)
    ]
    path = write_dataset(folder / "dataset", samples, shard_size=500)
    contestants: dict[str, Contestant] = {
        BARE: lambda: bare(images, workers),
        WEIGHTED: lambda: winnow(path, workers, is_weighted=True),
        "Winnow loader, equal weights, one caption": lambda: winnow(path, workers, is_weighted=False),
        "webdataset, rejecting by weight, one of five captions": lambda: start_webdataset(
            path, workers, crop_fast, is_rejecting=True
        ),
        "webdataset": lambda: start_webdataset(path, workers, crop_fast),
        "webdataset, decoding with Pillow (bicubic)": lambda: start_webdataset(path, workers, crop_pillow),
    }
    missing = missing_peers()
    firsts = [own[0] for own in texts]
    if "mosaicml-streaming" not in missing:
        write_streaming(folder / "streaming", pictures, firsts)
        contestants["mosaicml-streaming"] = lambda: start_streaming(folder / "streaming", workers, crop_fast)
    if "litdata" not in missing:
        write_litdata(folder / "litdata", pictures, firsts)
        contestants["litdata"] = lambda: start_litdata(folder / "litdata", workers, crop_fast)
    return contestants


def print_table(rates: dict[str, list[float]], costs: dict[str, list[float]]) -> None:
    """Print what each contestant did, and the loader's ratio to it, which is taken within each round."""
    print(f"| | samples/s (lowest-highest) | CPU ms/sample | {WEIGHTED} / this |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[WEIGHTED], values, strict=True))
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


def winnow(path: Path, workers: int, *, is_weighted: bool) -> tuple[Iterator[int], Callable[[], None]]:
    """Start the loader under test."""
    captions = {"alt_text": 0.2, "rewrite": 0.8} if is_weighted else {"alt_text": 1.0}
    dataset = Dataset.open(str(path), cache=str(path.parent / "cache"), captions=captions)
    if not is_weighted:
        dataset = replace(dataset, weights=np.ones(NUM_SAMPLES))
    loader = Loader(dataset, LoaderConfig(batch_size=BATCH, image_size=SIZE, num_workers=workers))
    return (len(batch.texts) for batch in loader.batches(0)), loader.close


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
