"""What the trainer costs beside a plain PyTorch loop: CPU time per step and peak memory of the same model on the same batches.

The plain loop takes its batches from the same loader, because decoding has a benchmark of its own, and does what anybody would write:
tokenize, both towers, cross-entropy both ways, backward, AdamW. Winnow's side is `train()` whole: prefetch thread, losses by request,
metrics, progress, signals. The sides alternate, one thread each; CPU seconds of the process, because other work on the machine disturbs
them least. Prints Markdown.

python -m benchmarks.bench_train_step [--rounds 5] [--steps 12]
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.memory import measure
from schemas.progress import SilentProgress
from tests.train.dataset_builder import Sample, draw_picture, encode_picture, make_uid, write_dataset
from train.config import TrainConfig
from train.index import Dataset
from train.loader import Loader, LoaderConfig
from train.model import LOGIT_SCALE_MAX, build_model
from train.tokenizer import train_tokenizer
from train.trainer import train

MODEL, SIDE, BATCH, SAMPLES = "vit-tiny", 64, 64, 256
WARM_STEPS = 2  # whose first allocations neither side counts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        data = make_data(Path(temporary) / "data")
        seconds: dict[str, list[float]] = {"plain": [], "winnow": []}
        ratios = []
        for number in range(options.rounds):
            plain = plain_steps(data, options.steps)
            winnow = winnow_steps(data, str(Path(temporary) / f"run{number}"), options.steps)
            seconds["plain"] += plain
            seconds["winnow"] += winnow
            ratios.append(statistics.median(winnow) / statistics.median(plain))
            print(f"round {number + 1}: {ratios[-1]:.3f}", file=sys.stderr, flush=True)
        memory = {
            "plain": measure(plain_steps, data, options.steps).gib,
            "winnow": measure(winnow_steps, data, str(Path(temporary) / "run"), options.steps).gib,
        }
    print(
        f"{MODEL}, {BATCH} pictures of {SIDE} px per step, one thread, {options.rounds} rounds of {options.steps} steps.\n"
    )
    print("| loop | CPU ms per step (median) | peak memory, GiB |")
    print("| --- | ---: | ---: |")
    for name, values in seconds.items():
        print(f"| {name} | {1000 * statistics.median(values):.0f} | {memory[name]:.2f} |")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"\nRatio of CPU time, median of rounds: **{statistics.median(ratios):.3f}** ({spread}); wanted: below 1.05.")
    print(f"Ratio of peak memory: {memory['winnow'] / memory['plain']:.3f}.")


def make_data(folder: Path) -> str:
    """Write a small dataset."""
    samples = [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_picture(number, width=SIDE, height=SIDE)),
            captions={"alt_text": f"a picture of thing number {number} beside thing number {number * 7 % 97}"},
        )
        for number in range(SAMPLES)
    ]
    return str(write_dataset(folder, samples))


def plain_steps(data: str, num_steps: int) -> list[float]:
    """Return the CPU seconds of each step of a plain loop."""
    torch.set_num_threads(1)
    config = TrainConfig(model=MODEL)
    shape = config.model_config()
    dataset = Dataset.open(data)
    captions = [str(dataset.table.captions(row)[0]) for row in range(SAMPLES)]
    tokenizer = train_tokenizer(captions, shape.vocab_size, shape.context_length)
    model = build_model(shape, tokenizer, seed=0)
    network = model.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    seconds = []
    with Loader(dataset, LoaderConfig(batch_size=BATCH, image_size=SIDE, num_workers=0)) as loader:
        batches = loader.batches()
        for _ in range(num_steps + WARM_STEPS):
            began = time.process_time()
            batch = next(batches)
            tokens = tokenizer(batch.texts, padding=True, truncation=True, return_tensors="pt")
            pixels = (batch.images.float() / 255 - mean) / std
            output = network(input_ids=tokens["input_ids"], pixel_values=pixels)
            own = torch.arange(BATCH)
            logits = output.logits_per_image
            loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                network.logit_scale.clamp_(0, LOGIT_SCALE_MAX)
            seconds.append(time.process_time() - began)
    return seconds[WARM_STEPS:]


class StepClock(SilentProgress):
    """Notes the CPU time at every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, amount: int, **fields: str) -> None:
        """Note the time."""
        del amount, fields
        self.times.append(time.process_time())


def winnow_steps(data: str, out: str, num_steps: int) -> list[float]:
    """Return the CPU seconds of each step of `train()`."""
    clock = StepClock()
    # One step more, because times lie between steps; it ends with the checkpoint, which comes after the last.
    config = TrainConfig(
        model=MODEL,
        batch_size=BATCH,
        samples_seen=BATCH * (num_steps + WARM_STEPS + 1),
        num_workers=0,
        num_threads=1,
        save_every=1_000_000,
    )
    train(data, out, config, progress=clock)
    return [
        after - before for before, after in zip(clock.times[WARM_STEPS:], clock.times[WARM_STEPS + 1 :], strict=False)
    ]


if __name__ == "__main__":
    main()
