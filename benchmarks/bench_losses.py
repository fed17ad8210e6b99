"""What losses cost: a step of each against a step of InfoNCE, and the memory and time of InfoNCE and SigLIP against the batch.

One thread, CPU seconds of the process, which other work on the machine disturbs least; contestants alternate, ratios are of medians.
Pictures and texts are random: what is compared is arithmetic. Prints Markdown.

python -m benchmarks.bench_losses [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from train.config import MODELS
from train.distributed import World
from train.gradients import compute_gradients
from train.inputs import Inputs
from train.loss import Objective, Outputs, make_loss
from train.model import KEPT_PATCHES, ImageTextModel, build_model
from train.request import Column, Ids, Present, Text, View, tower_requests, wanted_texts, wanted_views
from train.tokenizer import train_tokenizer
from train.towers import PatchDropper

BATCH, LENGTH, LABELS = 64, 32, 1000
MODEL = replace(MODELS["vit-tiny"], vocab_size=600, context_length=LENGTH)
WORDS = [f"a picture of thing number {number} beside another thing" for number in range(400)]
# Loss settings to time, each against the first.
CONTESTANTS: Mapping[str, Mapping[str, object]] = {
    "info_nce": {"info_nce": 1.0},
    "siglip": {"siglip": 1.0},
    "hn_nce": {"hn_nce": 1.0},
    "info_nce + cyclip": {"info_nce": 1.0, "cyclip": 1.0},
    "alip (a second caption)": {"alip": 1.0},
    "negclip (one negative)": {"negclip": 1.0},
    "multi_text (two texts more)": {"multi_text": {"count": 2}},
    "distillation, stored teacher": {"distillation": 1.0},
    "catlip (no text tower)": {"catlip": 1.0},
    "lit, live image tower": {"lit": 1.0},
    "lit, stored embeddings": {"lit": {"embedding": "image_embedding"}},
    "info_nce + simclr (two views more)": {"info_nce": 1.0, "simclr": {"hidden": 512}},
    "filip": {"filip": 1.0},
    "otter (EMA teacher)": {"otter": 1.0},
    "info_nce + concept_distillation (two heads)": {"info_nce": 1.0, "concept_distillation": 1.0},
    "info_nce + coca (2 layers)": {"info_nce": 1.0, "coca": {"weight": 2.0, "layers": 2, "num_queries": 32}},
}
MEMORY_BATCHES = (1024, 2048, 4096, 8192)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(*measure_loss(options.memory[0], int(options.memory[1])))
        return
    print_steps(options.rounds)
    print_memory()


def print_steps(rounds: int) -> None:
    """Time the steps, and print one row for each."""
    steps = {name: make_step(losses) for name, losses in CONTESTANTS.items()}
    steps["info_nce, half of the patches"] = make_step(CONTESTANTS["info_nce"], patch_share=0.5)
    steps["distillation, live teacher"] = make_step(CONTESTANTS["distillation, stored teacher"], has_live_teacher=True)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if number:  # the first warms up
                seconds[name].append(time.process_time() - began)
    base = statistics.median(seconds["info_nce"])
    print(f"A step of {BATCH} pairs, `vit-tiny`, gradients included; CPU seconds, median of {rounds}.\n")
    print("| loss | ms | of info_nce |\n| --- | --- | --- |")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {1000 * median:.0f} | {median / base:.2f} |")
    print()


def make_step(
    losses: Mapping[str, object], *, has_live_teacher: bool = False, patch_share: float = 1.0
) -> Callable[[], None]:
    """Return a function that makes one step with these losses on a fixed batch."""
    model = build_model(MODEL, train_tokenizer(WORDS, 600, LENGTH), seed=0).train()
    objective = Objective(losses)  # type: ignore[arg-type]
    inputs = make_inputs(model, objective)
    if patch_share < 1:
        model.patch_dropper = PatchDropper(model, patch_share)
        inputs.towers[KEPT_PATCHES] = model.patch_dropper.draw(range(BATCH))
    columns = [request for request in objective.needs if isinstance(request, Column)]
    sizes = {column.key: LABELS if column.kind == "labels" else MODEL.embed_dim for column in columns}
    objective.build(replace(model.shape, num_labels=sizes, widths=sizes), model.copy)
    asked = tower_requests(objective.needs)
    model.freeze(images=objective.locks_images or not wanted_views(asked), texts=not wanted_texts(asked))
    teacher = model.copy().eval() if has_live_teacher else None

    def step() -> None:
        model.zero_grad()
        objective.zero_grad()
        if teacher is not None:
            with torch.no_grad():
                teacher(inputs.towers, (View(), Text()))
        compute_gradients(model, objective, inputs, world=World(), autocast=nullcontext)

    return step


def make_inputs(model: ImageTextModel, objective: Objective) -> Inputs:
    """Return a random batch with what the losses ask for."""
    rng = torch.Generator().manual_seed(0)
    size = model.image_size
    towers = {
        view.key: torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=rng)
        for view in wanted_views(objective.needs)
    }
    fields: dict[str, torch.Tensor] = {}
    ids, mask = model.tokenize(WORDS[:BATCH])
    for text in wanted_texts(objective.needs):
        several = (BATCH,) if text.count == 1 else (BATCH, text.count)
        towers[f"{text.key}.ids"] = ids if text.count == 1 else ids[:, None].repeat(1, text.count, 1)
        towers[f"{text.key}.mask"] = mask if text.count == 1 else mask[:, None].repeat(1, text.count, 1)
        fields[Present(text).key] = torch.ones(several, dtype=torch.bool)
        fields[Ids(text).key] = ids.masked_fill(mask == 0, -1)
    for request in objective.needs:
        if isinstance(request, Column) and request.kind == "labels":
            fields[request.key] = torch.randint(0, LABELS, (BATCH, 4), generator=rng)
        elif isinstance(request, Column) and request.kind == "numbers":
            fields[request.key] = torch.rand(BATCH, 4, generator=rng)
        elif isinstance(request, Column):
            fields[request.key] = torch.randn(BATCH, MODEL.embed_dim, generator=rng)
    return Inputs(towers=towers, fields=fields, indices=np.arange(BATCH))


def print_memory() -> None:
    """Measure each loss and batch in a process of its own, and print one row for each batch."""
    print(
        "The loss alone, forward and backward, features of 512 numbers: peak memory in MiB over those of the features, and CPU seconds.\n"
    )
    print("| batch | info_nce | siglip, chunks of 1024 | ratio | info_nce, s | siglip, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for batch in MEMORY_BATCHES:
        found = []
        for name in ("info_nce", "siglip"):
            command = [sys.executable, "-m", "benchmarks.bench_losses", "--memory", name, str(batch)]
            # A fixed threshold gives every large tensor back at once; otherwise the allocator's own holes are measured.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
            result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found.append(tuple(map(float, result.stdout.split())))
        (softmax, softmax_seconds), (sigmoid, sigmoid_seconds) = found
        print(
            f"| {batch} | {softmax:.0f} | {sigmoid:.0f} | {softmax / max(sigmoid, 1):.1f} "
            f"| {softmax_seconds:.2f} | {sigmoid_seconds:.2f} | {softmax_seconds / sigmoid_seconds:.1f} |"
        )


def measure_loss(name: str, batch: int) -> tuple[float, float]:
    """Return by how many MiB the peak of this process rises in one step of a loss, and the CPU seconds of another step."""
    features = [torch.nn.functional.normalize(torch.randn(batch, 512), dim=1) for _ in range(2)]
    for value in features:
        value.requires_grad_().grad = torch.zeros(batch, 512)
    tensors = {View().key: features[0], Text().key: features[1]}
    loss = make_loss(name, {})
    small = {key: value[:8].detach().requires_grad_() for key, value in tensors.items()}
    sum(loss(Outputs(tensors=small, logit_scale=torch.tensor(10.0))).values()).backward()  # type: ignore[union-attr]
    # Not getrusage: its peak begins with that of the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kibibytes()
    step = partial(loss, Outputs(tensors=tensors, logit_scale=torch.tensor(10.0)))
    sum(step().values()).backward()
    risen = (peak_kibibytes() - before) / 1024
    began = time.process_time()
    sum(step().values()).backward()
    return risen, time.process_time() - began


def peak_kibibytes() -> int:
    """Return the largest resident memory of this process since its peak was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
