"""What the trainer costs beside a plain PyTorch loop: time per step and peak memory of the same model on the same batches.

The plain loop takes its batches from the same loader, because decoding has a benchmark of its own, and does what anybody would write:
tokenize, both towers, cross-entropy both ways, backward, AdamW. Winnow's side is `train()` whole: prefetch thread, losses by request,
metrics, progress, signals. A third side draws each text from an alt-text and four rewrites, which LaCLIP (arXiv 2305.20088) says costs
nothing. Each side is a process whose torch has one thread. They take turns step by step and ratios are those of neighbouring steps, because
a busy machine makes all of them slower by half and back again within seconds. The clock counts a side's own turn; CPU time also counts what
Winnow does beside the step in a thread of its own (the next batch), which costs more where two CPUs share a core. Prints Markdown.

python -m benchmarks.bench_train_step [--steps 60]
"""

import argparse
import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.nn import functional

from schemas.progress import SilentProgress
from tests.train.dataset_builder import Sample, draw_picture, encode_picture, make_uid, write_dataset
from train.config import TrainConfig
from train.index import Dataset
from train.loader import Loader, LoaderConfig
from train.model import LOGIT_SCALE_MAX, build_model
from train.tokenizer import train_tokenizer
from train.trainer import train

MODEL, SIDE, BATCH, SAMPLES = "vit-tiny", 64, 64, 256
WARM_STEPS = 3  # whose first allocations no side counts
NUM_REWRITES = 4
MIXTURE = {"alt_text": 1 / (NUM_REWRITES + 1), "rewrite": NUM_REWRITES / (NUM_REWRITES + 1)}
PLAIN, WINNOW, MIXED = "plain loop", "Winnow", "Winnow, one of five captions"


@dataclass(frozen=True)
class Cost:
    """Seconds of each step by the clock and of CPU time, and the process's largest memory in GiB."""

    clock: list[float]
    cpu: list[float]
    gib: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = make_data(Path(temporary) / "data")
        costs = take_turns(data, temporary, options.steps)
    print(f"{MODEL}, {BATCH} pictures of {SIDE} px per step, one thread, {options.steps} steps in turn.\n")
    print("| loop | ms per step (median) | CPU ms per step (median) | peak memory, GiB |")
    print("| --- | ---: | ---: | ---: |")
    for name, cost in costs.items():
        clock, cpu = (1000 * statistics.median(seconds) for seconds in (cost.clock, cost.cpu))
        print(f"| {name} | {clock:.0f} | {cpu:.0f} | {cost.gib:.2f} |")
    print(f"\nWinnow to the plain loop, wanted below 1.05: {compare(costs[WINNOW], costs[PLAIN])}.\n")
    print(f"One of five captions to the alt-text alone: {compare(costs[MIXED], costs[WINNOW])}.")


def compare(one: Cost, other: Cost) -> str:
    """Return the ratios of two sides in words: of times the median of the steps with its quartiles."""
    words = []
    for name, own, beside in (("time", one.clock, other.clock), ("CPU time", one.cpu, other.cpu)):
        low, median, high = statistics.quantiles([a / b for a, b in zip(own, beside, strict=True)], n=4)
        words.append(f"{name} **{median:.3f}** (half of the steps {low:.3f} to {high:.3f})")
    return ", ".join([*words, f"peak memory {one.gib / other.gib:.3f}"])


def take_turns(data: str, folder: str, num_steps: int) -> dict[str, Cost]:
    """Run all sides, one step of each after the other."""
    context = multiprocessing.get_context("spawn")
    sides = {PLAIN: (run_plain, {}), WINNOW: (run_winnow, {"alt_text": 1.0}), MIXED: (run_winnow, MIXTURE)}
    turns: dict[str, Connection] = {}
    for number, (name, (side, captions)) in enumerate(sides.items()):
        turns[name], theirs = context.Pipe()
        arguments = (theirs, data, f"{folder}/run{number}", num_steps + WARM_STEPS + 1, captions)
        context.Process(target=side, args=arguments, daemon=True).start()
        theirs.close()  # or a side that fails would be waited for
    steps: dict[str, list[tuple[float, float]]] = {name: [turn.recv()] for name, turn in turns.items()}
    for _ in range(num_steps + WARM_STEPS):
        for name, turn in turns.items():
            turn.send(None)
            steps[name].append(turn.recv())
    found = {}
    for name, turn in turns.items():
        turn.send(None)
        clocks, cpus = zip(*steps[name][WARM_STEPS:], strict=True)
        found[name] = Cost(
            list(clocks[1:]), [after - before for before, after in itertools.pairwise(cpus)], turn.recv()
        )
    return found


class Turn(SilentProgress):
    """Says what the process has computed after each step, and waits for its turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stage = "train"
        self._began = time.perf_counter()

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Remember what is advancing: before training the dataset is opened."""
        del total, unit
        self._stage = stage

    def advance(self, amount: int, **fields: str) -> None:
        """End a step. All of the process's seconds count, those of the thread that makes the next batch included."""
        del amount, fields
        if self._stage != "train":
            return
        self._connection.send((time.perf_counter() - self._began, time.process_time()))
        self._connection.recv()
        self._began = time.perf_counter()

    def finish(self) -> None:
        """Say the largest memory."""
        self._connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)


def make_data(folder: Path) -> str:
    """Write a small dataset."""
    samples = [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_picture(number, width=SIDE, height=SIDE)),
            captions={
                "alt_text": f"a picture of thing number {number} beside thing number {number * 7 % 97}",
                "rewrite": [
                    f"a drawing of thing number {number} with thing number {number * 7 % 97 + 100 * part}"
                    for part in range(1, NUM_REWRITES + 1)
                ],
            },
        )
        for number in range(SAMPLES)
    ]
    return str(write_dataset(folder, samples))


def run_plain(connection: Connection, data: str, out: str, num_steps: int, captions: Mapping[str, float]) -> None:
    """Train in a plain loop."""
    del out, captions
    torch.set_num_threads(1)
    turn = Turn(connection)
    config = TrainConfig(model=MODEL)
    shape = config.model_config()
    dataset = Dataset.open(data)
    captions = [str(dataset.table.captions(row)[0]) for row in range(SAMPLES)]
    tokenizer = train_tokenizer(captions, shape.vocab_size, shape.context_length)
    model = build_model(shape, tokenizer, seed=0)
    network = model.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    with Loader(dataset, LoaderConfig(batch_size=BATCH, image_size=SIDE, num_workers=0)) as loader:
        batches = loader.batches()
        for _ in range(num_steps):
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
            turn.advance(BATCH)
    turn.finish()


def run_winnow(connection: Connection, data: str, out: str, num_steps: int, captions: Mapping[str, float]) -> None:
    """Train with `train()`, the texts drawn from the mixture `captions`."""
    turn = Turn(connection)
    config = TrainConfig(
        model=MODEL,
        batch_size=BATCH,
        samples_seen=BATCH * num_steps,
        num_workers=0,
        num_threads=1,
        save_every=1_000_000,
        captions=captions,
    )
    train(data, out, config, progress=turn)
    turn.finish()


if __name__ == "__main__":
    main()
