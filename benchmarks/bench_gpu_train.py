"""Training on one GPU: samples/s of Winnow beside plain loops that find their batches on the GPU, with and without torch.compile.

The plain loops do what open_clip's training does (bf16 autocast, AdamW with its betas and decay, cross-entropy both ways, texts of 77 tokens),
on the same transformers model and on open_clip's own, and never wait for data: they are the most that a trainer can reach. Winnow's side
is `train()` whole, fed with JPEGs by its loader. The loader alone says whether the training waits for data. Utilisation counts the
operations of forward and backward pass as torch counts them. Sides run one after the other. Prints Markdown.

python -m benchmarks gpu_train
python -m benchmarks.bench_gpu_train --models vit-b-32 --batches 1024 --data FOLDER_OF_PHOTOS
"""

import argparse
import gc
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_loader import SHARED, make_images
from tests.train.dataset_builder import Sample, make_uid, write_dataset
from train.acceleration import compile_towers
from train.config import MODELS, TrainConfig
from train.distributed import World
from train.index import Dataset
from train.loader import Loader, LoaderConfig
from train.metrics import TIMINGS_FILE, read_metrics
from train.model import LOGIT_SCALE_MAX, ImageTextModel, build_model
from train.tokenizer import train_tokenizer
from train.trainer import train

NUM_SAMPLES, SHORT_SIDE = 4096, 256
WARM_STEPS, LOG_EVERY = 20, 10
OPEN_CLIP = {"vit-b-32": "ViT-B-32", "vit-b-16": "ViT-B-16", "vit-l-14": "ViT-L-14"}
# Dense bf16 of the data sheets, TFLOP/s.
DATA_SHEET = {"H100": 989.4, "H200": 989.4, "A100": 312.0}
Step = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """What all sides of a model share."""

    model: str
    batch: int
    steps: int
    workers: int
    device: torch.device
    data: str  # a dataset
    captions: list[str]

    @property
    def image_size(self) -> int:
        return MODELS[self.model].image_size

    @property
    def has_peer(self) -> bool:
        """Whether open_clip has this model and is installed."""
        return self.model in OPEN_CLIP and importlib.util.find_spec("open_clip") is not None

    @property
    def context_length(self) -> int:
        return MODELS[self.model].context_length


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vit-b-32,vit-b-16")
    parser.add_argument("--batches", default="1024,512", help="samples per step of each model")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument(
        "--sides", default="", help="run those whose name holds one of these words, separated by commas"
    )
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder of photos")
    parser.add_argument("--device", default="cuda", help="cpu: to see that it runs")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("this benchmark needs a CUDA device", file=sys.stderr)
        return 2
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    images, origin = make_images(options.data, SHORT_SIDE)
    rates = describe_device(device)
    print(
        f"Pictures: {origin}, short side {SHORT_SIDE} px, JPEG; {options.workers} loader processes. Precision bf16.\n"
    )
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        data, captions = make_data(Path(folder) / "data", images)
        models, batches = options.models.split(","), [int(batch) for batch in options.batches.split(",")]
        for model, batch in zip(models, batches, strict=True):
            bench = Bench(model, batch, options.steps, options.workers, device, data, captions)
            print(f"### {model}, {batch} samples a step, {options.steps} steps\n", flush=True)
            measure_model(bench, Path(folder), rates, [word for word in options.sides.split(",") if word])
    return 0


def measure_model(bench: Bench, folder: Path, rates: Sequence[float], words: Sequence[str]) -> None:
    """Run the sides of one model and print a row for each."""
    sides: dict[str, Callable[[], float]] = {
        "plain loop, batches on the GPU": partial(run_plain, bench, is_compiled=False),
        **({"open_clip's model and loss, batches on the GPU": partial(run_open_clip, bench)} if bench.has_peer else {}),
        "Winnow, JPEGs decoded by workers": partial(run_winnow, bench, folder),
        "Winnow, JPEGs decoded on the GPU": partial(run_winnow, bench, folder, decode="gpu"),
        "Winnow, compiled": partial(run_winnow, bench, folder, is_compiled=True),
        "plain loop, compiled, batches on the GPU": partial(run_plain, bench, is_compiled=True),
        "the loader alone": partial(run_loader, bench),
    }
    flops = count_flops(bench)
    print(f"{flops / 1e9:.1f} GFLOP per sample, forward and backward.\n")
    print(
        "| side | samples/s | to the plain loop | of the data sheet | of the measured rate | GPU memory, GiB | start, s |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    plain = 0.0
    for name, side in sides.items():
        if words and not any(word in name for word in words):
            continue
        gc.collect()
        torch.compiler.reset()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        speed = side()
        seconds = time.perf_counter() - began - bench.steps * bench.batch / speed
        plain = plain or speed
        memory = torch.cuda.max_memory_allocated() / 2**30 if bench.device.type == "cuda" else 0.0
        used = ["" if name == "the loader alone" else f"{flops * speed / rate:.1%}" for rate in rates]
        print(
            f"| {name} | {speed:,.0f} | {speed / plain:.2f} | {' | '.join(used)} | {memory:.1f} | {seconds:.0f} |",
            flush=True,
        )
    print()


def describe_device(device: torch.device) -> tuple[float, float]:
    """Print what the device is; return its rate in FLOP/s by its data sheet, and as measured with one large product."""
    side = 8192 if device.type == "cuda" else 512
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_steps(lambda: one @ other, 5, 20, device)
    measured = 2 * side**3 / seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sheet = next((rate * 1e12 for word, rate in DATA_SHEET.items() if word in name), measured)
    print(
        f"{name}: {measured / 1e12:.0f} TFLOP/s measured on bf16 products of {side}, {sheet / 1e12:.0f} by its data sheet."
    )
    return sheet, measured


def time_steps(step: Step, num_warm: int, num_steps: int, device: torch.device) -> float:
    """Return the mean seconds of a step, after some that do not count."""
    for _ in range(num_warm):
        step()
    _wait(device)
    began = time.perf_counter()
    for _ in range(num_steps):
        step()
    _wait(device)
    return (time.perf_counter() - began) / num_steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_data(folder: Path, images: Sequence[bytes]) -> tuple[str, list[str]]:
    """Write a dataset whose captions have 3 to 80 words, so that every batch has texts as long as the model takes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(3000)]
    captions = [" ".join(rng.choices(words, k=rng.randint(3, 80))) for _ in range(NUM_SAMPLES)]
    samples = [
        Sample(uid=make_uid(number), image=images[number % len(images)], captions={"alt_text": caption})
        for number, caption in enumerate(captions)
    ]
    return str(write_dataset(folder, samples, shard_size=512)), captions


def _make_model(bench: Bench) -> ImageTextModel:
    shape = MODELS[bench.model]
    return build_model(shape, train_tokenizer(bench.captions, shape.vocab_size, shape.context_length), seed=0)


def count_flops(bench: Bench) -> float:
    """Return the operations of one sample's forward and backward pass."""
    model = _make_model(bench).to(bench.device).train()
    pixels, tokens = next(_batches(bench, 8, len(model.tokenizer)))
    with FlopCounterMode(display=False) as counter, torch.autocast(bench.device.type, torch.bfloat16):
        _clip_loss(model.network(input_ids=tokens, pixel_values=pixels).logits_per_image).backward()
    return counter.get_total_flops() / 8


def _batches(bench: Bench, size: int, vocab_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pixels as float32, as open_clip's loader has them, and token ids, on the device; four batches in turn."""
    side, device = bench.image_size, bench.device
    generator = torch.Generator(device).manual_seed(0)
    made = [
        (
            torch.randn(size, 3, side, side, device=device, generator=generator),
            torch.randint(3, vocab_size, (size, bench.context_length), device=device, generator=generator),
        )
        for _ in range(4)
    ]
    while True:
        yield from made


def _optimizer(network: nn.Module) -> torch.optim.AdamW:
    parameters = list(network.named_parameters())
    plain = [value for name, value in parameters if value.ndim < 2 or "logit_scale" in name]
    decayed = [value for name, value in parameters if not (value.ndim < 2 or "logit_scale" in name)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


def _clip_loss(logits: torch.Tensor) -> torch.Tensor:
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def run_plain(bench: Bench, *, is_compiled: bool) -> float:
    """Train transformers' model in a plain loop; return samples/s."""
    model = _make_model(bench).to(bench.device).train()
    if is_compiled:
        compile_towers(model, World(device=bench.device))
    batches = _batches(bench, bench.batch, len(model.tokenizer))
    optimizer = _optimizer(model.network)

    def loss(pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return _clip_loss(model.network(input_ids=tokens, pixel_values=pixels).logits_per_image)

    return _train_plain(bench, model.network.logit_scale, optimizer, batches, loss)


def run_open_clip(bench: Bench) -> float:
    """Train open_clip's model with its loss; return samples/s."""
    import open_clip

    network: Any = open_clip.create_model(OPEN_CLIP[bench.model], device=bench.device, output_dict=True).train()
    criterion = open_clip.ClipLoss()
    batches = _batches(bench, bench.batch, 49_000)
    optimizer = _optimizer(network)

    def loss(pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return criterion(**network(pixels, tokens))

    return _train_plain(bench, network.logit_scale, optimizer, batches, loss)


def _train_plain(
    bench: Bench,
    logit_scale: torch.Tensor,
    optimizer: torch.optim.AdamW,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> float:
    def step() -> None:
        pixels, tokens = next(batches)
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            value = loss(pixels, tokens)
        value.backward()
        optimizer.step()
        with torch.no_grad():
            logit_scale.clamp_(0, LOGIT_SCALE_MAX)

    return bench.batch / time_steps(step, WARM_STEPS // 2, bench.steps, bench.device)


def run_winnow(bench: Bench, folder: Path, *, decode: str = "cpu", is_compiled: bool = False) -> float:
    """Train with `train()`; return the median samples/s between two records, those of the start left out."""
    config = TrainConfig(
        model=bench.model,
        batch_size=bench.batch,
        samples_seen=bench.batch * (bench.steps + WARM_STEPS),
        num_workers=bench.workers,
        log_every=LOG_EVERY,
        save_every=1_000_000,
        compile=is_compiled,
        decode=decode,
        precision="auto" if bench.device.type == "cuda" else "bf16",
    )
    with tempfile.TemporaryDirectory(dir=folder) as out:
        train(bench.data, out, config)
        records = list(read_metrics(Path(out) / TIMINGS_FILE))
    return statistics.median(record["samples_per_second"] for record in records if record["step"] > WARM_STEPS)


def run_loader(bench: Bench) -> float:
    """Return the samples/s of the loader when nobody uses the batches."""
    config = LoaderConfig(batch_size=bench.batch, image_size=bench.image_size, num_workers=bench.workers)
    with Loader(Dataset.open(bench.data), config) as loader:
        batches = loader.batches()
        seconds = time_steps(lambda: next(batches), WARM_STEPS // 4, bench.steps, torch.device("cpu"))
    return bench.batch / seconds


if __name__ == "__main__":
    raise SystemExit(main())
