"""clip_score beside the loop that one would write with transformers: the same scores, and which is faster.

Both begin at JPEG bytes and captions and end at a cosine per pair, in one process with one torch thread, taking turns. The model has the
shape of ViT-B/32 and random weights. CPU time is given beside the clock, which other programs disturb.

python -m benchmarks clip_score
python -m benchmarks.bench_clip_score --num-pictures 100
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.bench_annotate import make_rows
from benchmarks.measured_model import make_clip
from curate.columns import gather, scatter
from curate.operator import ShardOperator
from curate.operators.clip_score import ClipScore
from tests.contract import make_inputs
from tests.pool import Row

ROUNDS = 3
BATCH = 64
TOLERANCE = 1e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pictures", type=int, default=256)
    options = parser.parse_args(arguments)
    rows, source = make_rows(options.num_pictures)
    with tempfile.TemporaryDirectory() as folder:
        model = str(make_clip(Path(folder) / "model", [row.caption or "" for row in rows]))
        ways = {
            "winnow clip_score": winnow_way(model, rows[:BATCH]),
            "a loop over transformers' CLIPModel": plain_way(model),
        }
        scores = {name: way(rows) for name, way in ways.items()}
        clock: dict[str, list[float]] = {name: [] for name in ways}
        used: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                started, cpu = time.perf_counter(), time.process_time()
                way(rows)
                clock[name].append(time.perf_counter() - started)
                used[name].append(time.process_time() - cpu)
    ours, theirs = scores.values()
    gap = float(np.abs(ours - theirs).max())
    print(f"{len(rows)} pictures ({source}), batches of {BATCH}, one torch thread, {ROUNDS} rounds in turn.\n")
    print("| way | pairs/s (median) | CPU ms per pair (least) |")
    print("|---|---|---|")
    for name in ways:
        rate, cost = len(rows) / statistics.median(clock[name]), min(used[name]) / len(rows) * 1e3
        print(f"| {name} | {rate:.1f} | {cost:.1f} |")
    ours_cpu, theirs_cpu = (min(times) for times in used.values())
    print(f"\nCPU of the loop / CPU of winnow: {theirs_cpu / ours_cpu:.2f}")
    print(f"Scores from {ours.min():.4f} to {ours.max():.4f}; largest difference {gap:.1e} (allowed: {TOLERANCE})")
    return 0 if gap <= TOLERANCE else 1


def winnow_way(model: str, some: Sequence[Row]) -> Callable[[Sequence[Row]], np.ndarray]:
    """Return the operators that clip_score runs, loaded, as one function."""
    score = ClipScore(model=model)
    operators = [operator for operator in (*score.requires(), score) if isinstance(operator, ShardOperator)]
    loaded = [(operator, operator.prepare(), operator.load()) for operator in operators]

    def run(rows: Sequence[Row]) -> np.ndarray:
        inputs = {column: found for operator, *_ in loaded[:2] for column, found in make_inputs(operator, rows).items()}
        for operator, prepare, annotate in loaded:
            batches = gather(operator, inputs, len(rows))
            results = [annotate(prepare(table) if prepare else table) for table in batches.tables]
            output = scatter(operator, batches, results)
            inputs |= {name: output.as_input(name) for name in output.columns}
        return np.asarray(output.columns["clip_score"])

    run(some)
    return run


def plain_way(model: str) -> Callable[[Sequence[Row]], np.ndarray]:
    """Return the loop of transformers' documentation: processor and tokenizer, model, cosine."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    network = CLIPModel.from_pretrained(model).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(model), AutoTokenizer.from_pretrained(model)

    def run(rows: Sequence[Row]) -> np.ndarray:
        found = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            pictures = [Image.open(io.BytesIO(row.image or b"")).convert("RGB") for row in part]
            pixels = processor(images=pictures, return_tensors="pt")
            length = network.config.text_config.max_position_embeddings
            texts = tokenizer(
                [row.caption or "" for row in part],
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            with torch.inference_mode():
                output = network(**pixels, **texts)
            image, text = (
                torch.nn.functional.normalize(side, dim=-1) for side in (output.image_embeds, output.text_embeds)
            )
            found.append((image * text).sum(dim=-1).numpy())
        return np.concatenate(found)

    return run


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    raise SystemExit(main())
