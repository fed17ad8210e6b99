"""clip_score on a GPU: its operators beside the bare model on tensors that lie on the GPU, and beside the loop of transformers' documentation.

The bare model is transformers' own in half precision, at the best of several batch sizes; it gets normalised pixels and padded tokens that
are there already, so it is the most that a GPU can give. Winnow's side begins at the tables that a decoding process hands over (bytes,
tokens without padding) and ends at Arrow columns; two threads take the tables, as in a pass. The loops begin at decoded pictures and
captions. The model has random weights; what is computed faster for zeros is not: pixels are random. Sides take turns. Prints Markdown.

python -m benchmarks.bench_gpu_clip_score
python -m benchmarks.bench_gpu_clip_score --model vit-l-14 --num-pictures 3072 --rounds 2
python -m benchmarks.bench_gpu_clip_score --device cpu --model vit-tiny --num-pictures 64     # to see that it runs
"""

import argparse
import functools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from benchmarks.bench_annotate import make_rows
from benchmarks.measured_model import make_clip
from curate.columns import check_result
from curate.images import decode, to_column
from curate.lookahead import Lookahead
from curate.models.clip import TwoTowerModel, load_model, load_tokenize, to_half
from curate.models.preprocess import fill_images, load_settings
from curate.models.staging import PART_TOKENS, TABLES_AT_ONCE
from curate.operator import ShardOperator
from curate.operators.clip_score import ClipScore

TARGET, TOLERANCE = 0.9, 1e-3
# Different pictures and captions; more are the same again.
MAX_DISTINCT = 4096
BARE_BATCHES = (256, 512, 1024, 2048)
# A chunk, and chunks put together: as many as a pass hands over at once at 384 pixels a side, at 224, and at most.
TABLE_ROWS = (256, 512, 1536, 2048)
TOWER_ROWS = (64, 128, 256, 512, 1024)
LOOP_BATCH = 256
WORDS_PER_CAPTION, SPREAD = 9.0, 0.6
KINDS = ("images", "texts", "pairs")

Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What all sides share."""

    model: str
    num_pairs: int
    device: torch.device
    half: torch.dtype
    pixels: pa.FixedSizeBinaryArray  # of the distinct pictures, as `prepare_images` makes them
    ids: pa.ListArray

    def cuts(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield start and length of tables or batches, again and again over the distinct rows, until there are enough."""
        left = self.num_pairs
        while left:
            for start in range(0, len(self.ids), size):
                count = min(size, len(self.ids) - start, left)
                if count:
                    yield start, count
                left -= count


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where scores differ by more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-b-32", help="a shape of `winnow train`")
    parser.add_argument("--num-pictures", type=int, default=16_384)
    parser.add_argument("--num-compared", type=int, default=512, help="decoded pictures of the loops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to see that it runs")
    options = parser.parse_args(arguments)
    if (options.device == "cuda") != torch.cuda.is_available():
        wanted = "needs a CUDA device" if options.device == "cuda" else "runs on the CPU only where there is no GPU"
        print(f"this benchmark {wanted}", file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False  # for the loop in single precision
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as folder:
        work = make_work(Path(folder) / "model", options)
        print(
            f"{options.model} on {name}, torch {torch.__version__}; {work.num_pairs} pairs, {len(work.ids)} of them different, "
            f"texts of {np.diff(work.ids.offsets.to_numpy()).mean():.1f} tokens in the mean; {options.rounds} rounds in turn.\n",
            flush=True,
        )
        measure_parts(work)
        compare_throughput(work, options.rounds)
        gap = compare_loops(work, options.num_compared, options.rounds)
    print(f"\n{time.perf_counter() - began:.0f} s in all.")
    return 0 if gap <= TOLERANCE else 1


def make_work(folder: Path, options: argparse.Namespace) -> Work:
    """Write the model, and draw pictures of noise and captions of random words, about as long as those of the web."""
    random = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}" for a in "bdfglmnprst" for b in ("a", "e", "ion", "ou", "er") for c in "klmnrst"])
    num_distinct = min(options.num_pictures, MAX_DISTINCT)
    counts = np.clip(np.rint(random.lognormal(np.log(WORDS_PER_CAPTION), SPREAD, num_distinct)), 1, 60).astype(int)
    captions = [" ".join(random.choice(words, count)) for count in counts]
    model = str(make_clip(folder, captions, options.model))
    height, width = load_settings(model).size
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(height * width * 3),
        num_distinct,
        [None, pa.py_buffer(random.bytes(num_distinct * height * width * 3))],
    )
    device = torch.device(options.device)
    return Work(
        model=model,
        num_pairs=options.num_pictures,
        device=device,
        half=torch.float16 if device.type == "cuda" else torch.float32,
        pixels=pixels,
        ids=pa.array(load_tokenize(model)(captions), pa.list_(pa.int32())),
    )


def measure_parts(work: Work) -> None:
    """Print how long each step takes alone: where the time goes, what must hide behind what, and how large parts should be."""
    model = load_model(work.model)
    network, feeder, settings = model._network, model._feeder, model._settings
    size = min(1 << (PART_TOKENS // model._num_tokens).bit_length() - 1, len(work.pixels))
    host = feeder.empty((size, *settings.size, 3), torch.uint8)
    sent = feeder.send(host)
    column, ids = pa.chunked_array([work.pixels.slice(0, size)]), work.ids.slice(0, size)
    features = model.encode_images(column)
    steps: dict[str, tuple[int, Run]] = {
        "copy to pinned memory": (size, lambda: fill_images(settings, column, host.numpy())),
        "copy to the device": (size, lambda: feeder.send(host)),
        "normalise": (size, lambda: model._normalise(sent, work.half).permute(0, 3, 1, 2).contiguous()),
        "pictures to features on the host": (size, lambda: model.encode_images(column)),
        "texts to features on the host": (size, lambda: model.encode_ids(ids, 0)),
        "features to an Arrow column": (size, lambda: to_half(features)),
    }
    for rows in sorted({min(rows, len(work.pixels)) for rows in TOWER_ROWS}):
        values = torch.randn(rows, 3, *settings.size, device=work.device, dtype=work.half)
        steps[f"image tower, {rows} rows"] = rows, functools.partial(network.get_image_features, pixel_values=values)
    last = values.contiguous(memory_format=torch.channels_last)
    steps["the same, colours last"] = rows, functools.partial(network.get_image_features, pixel_values=last)
    print("| step | rows | ms | of which the host is busy | us per row |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for name, (rows, step) in steps.items():
            busy, seconds = np.median([timed_twice(work, step) for _ in range(7)], axis=0)
            print(
                f"| {name} | {rows} | {seconds * 1e3:.2f} | {busy * 1e3:.2f} | {seconds / rows * 1e6:.2f} |", flush=True
            )
    print()


def compare_throughput(work: Work, rounds: int) -> None:
    """Print rows per second of the bare model and of Winnow's operators, and their ratio."""
    bare = BareModel(work)
    best = bare.best_batches()
    ways = {"bare model": {kind: bare.way(kind, best) for kind in KINDS}}
    for rows in TABLE_ROWS:
        ways[f"winnow, tables of {rows}"] = winnow_ways(work, rows)
    seconds: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in ways for kind in KINDS}
    for kind in KINDS:
        for name in ways:
            ways[name][kind]()  # memory is taken, kernels are chosen
        for _ in range(rounds):
            for name in ways:
                seconds[name, kind].append(timed(work, ways[name][kind]))
    rates = {key: work.num_pairs / statistics.median(times) for key, times in seconds.items()}
    print(f"| rows/s (median) | {' | '.join(KINDS)} |\n|---|---|---|---|")
    for name in ways:
        print(f"| {name} | {' | '.join(f'{rates[name, kind]:.0f}' for kind in KINDS)} |")
    for name in list(ways)[1:]:
        ratios = (rates[name, kind] / rates["bare model", kind] for kind in KINDS)
        print(f"| {name} / bare | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    spread = max(max(times) / min(times) for times in seconds.values())
    print(
        f"\nBare model: batches of {best['images']} pictures and {best['texts']} texts, the best of {BARE_BATCHES}. Slowest round / fastest, "
        f"at most: {spread:.2f}. Target for pairs: {TARGET} of the bare model.\n",
        flush=True,
    )


class BareModel:
    """transformers' model in half precision, and its inputs on the device."""

    def __init__(self, work: Work) -> None:
        from transformers import CLIPModel

        self._work = work
        self._network = CLIPModel.from_pretrained(work.model, dtype=work.half).to(work.device).eval()
        model = load_model(work.model)
        height, width = load_settings(work.model).size
        flat = torch.frombuffer(bytearray(work.pixels.buffers()[1]), dtype=torch.uint8)
        with torch.inference_mode():
            parts = [
                model._normalise(part.to(work.device), work.half).permute(0, 3, 1, 2).contiguous()
                for part in flat.view(-1, height, width, 3).split(512)
            ]
            self._pixels = torch.cat(parts)
        self._ids = {batch: self._pad(batch) for batch in BARE_BATCHES}

    def _pad(self, batch: int) -> dict[tuple[int, int], torch.Tensor]:
        """Return the token ids of every batch, filled up to the longest of it as transformers' tokenizer does."""
        pad_id, found = load_tokenize(self._work.model).pad_id, {}
        for start, count in set(self._work.cuts(batch)):
            rows = [torch.tensor(row) for row in self._work.ids.slice(start, count).to_pylist()]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
            found[start, count] = padded.to(self._work.device)
        return found

    def _images(self, batch: int) -> torch.Tensor:
        found = [
            _feature(self._network.get_image_features(pixel_values=self._pixels[start : start + count]))
            for start, count in self._work.cuts(batch)
        ]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    def _texts(self, batch: int) -> torch.Tensor:
        found = [
            _feature(self._network.get_text_features(input_ids=self._ids[batch][start, count]))
            for start, count in self._work.cuts(batch)
        ]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    def way(self, kind: str, batches: dict[str, int]) -> Run:
        """Return the function that computes all features of a kind, or scores, and fetches them."""

        def run() -> object:
            with torch.inference_mode():
                if kind == "images":
                    return self._images(batches[kind]).cpu()
                if kind == "texts":
                    return self._texts(batches[kind]).cpu()
                return (self._images(batches["images"]) * self._texts(batches["texts"])).sum(dim=-1).cpu()

        return run

    def best_batches(self) -> dict[str, int]:
        """Return the batch sizes at which the model is fastest, measured on a part of the pairs."""
        part = replace(self._work, num_pairs=min(self._work.num_pairs, MAX_DISTINCT))
        whole, self._work = self._work, part
        seconds = {(kind, batch): math.inf for kind in KINDS[:2] for batch in BARE_BATCHES}
        for _ in range(3):
            for kind, batch in seconds:
                took = timed(part, self.way(kind, {kind: batch}))
                seconds[kind, batch] = min(took, seconds[kind, batch])
        self._work = whole
        return {kind: min(BARE_BATCHES, key=lambda batch, kind=kind: seconds[kind, batch]) for kind in KINDS[:2]}


def load_operators(work: Work) -> list[tuple[ShardOperator, Any]]:
    """Return clip_embedding, clip_text_embedding and clip_score with their loaded functions."""
    score = ClipScore(model=work.model)
    operators = [operator for operator in (*score.requires(), score) if isinstance(operator, ShardOperator)]
    return [(operator, operator.load()) for operator in operators]


def winnow_ways(work: Work, rows: int) -> dict[str, Run]:
    """Return the functions that run the operators over tables of `rows`, two at a time, and return their columns."""
    images, texts, scores = load_operators(work)
    tables = [
        (pa.table({"pixels": work.pixels.slice(*cut)}), pa.table({"ids": work.ids.slice(*cut)}))
        for cut in work.cuts(rows)
    ]

    def annotate(loaded: tuple[ShardOperator, Any], table: pa.Table) -> dict[str, pa.Array]:
        operator, function = loaded
        return check_result(operator, function(table), table.num_rows)[0]

    def score(pair: tuple[pa.Table, pa.Table]) -> pa.Array:
        columns = annotate(images, pair[0]) | annotate(texts, pair[1])
        return annotate(scores, pa.table(columns))["clip_score"]

    steps: dict[str, Callable[[tuple[pa.Table, pa.Table]], object]] = {
        "images": lambda pair: annotate(images, pair[0]),
        "texts": lambda pair: annotate(texts, pair[1]),
        "pairs": score,
    }
    lookaheads = {kind: Lookahead(step, TABLES_AT_ONCE) for kind, step in steps.items()}
    return {kind: lambda lookahead=lookahead: list(lookahead.map(tables)) for kind, lookahead in lookaheads.items()}


def compare_loops(work: Work, count: int, rounds: int) -> float:
    """Print rates from decoded pictures and captions to scores, and by how much scores differ from single precision; return the largest."""
    torch.set_num_threads(1)  # as in a worker, which has one CPU
    rows, source = make_rows(count)
    pictures = [decode(row.image or b"") for row in rows]
    captions = [f"{row.caption} {number % 7}" for number, row in enumerate(rows)]
    ways = {
        "winnow clip_score": decoded_way(work),
        "loop, half precision": loop_way(work, work.half),
        "loop, single precision": loop_way(work, torch.float32),
    }
    scores = {name: way(pictures, captions) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(work, lambda way=way: way(pictures, captions)))
    print(
        f"From {count} decoded pictures ({source}) and captions to scores, one process, one torch thread; loops in batches of {LOOP_BATCH}:\n"
    )
    single = scores["loop, single precision"]
    print("| way | pairs/s (median) | largest difference of a score to single precision |\n|---|---|---|")
    gaps = {name: float(np.abs(found - single).max()) for name, found in scores.items()}
    for name in ways:
        print(f"| {name} | {count / statistics.median(seconds[name]):.0f} | {gaps[name]:.1e} |")
    same = compare_precision(work, min(len(work.pixels), 1024))
    print(
        f"\nOn the same pixels, so by precision alone: {same:.1e}. Scores from {single.min():.3f} to {single.max():.3f}."
    )
    return max(gaps["winnow clip_score"], same)


def decoded_way(work: Work) -> Callable[[Sequence[np.ndarray], Sequence[str]], np.ndarray]:
    """Return the operators, prepared and loaded, as one function of decoded pictures and captions."""
    loaded = load_operators(work)
    prepares = [operator.prepare() for operator, _ in loaded[:2]]

    def run(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        inputs = (pa.table({"image": to_column(pictures)}), pa.table({"alt_text": list(captions)}))
        columns: dict[str, Any] = {}
        for (_, function), prepare, table in zip(loaded, prepares, inputs, strict=False):
            assert prepare is not None
            columns |= function(prepare(table))
        return np.asarray(loaded[2][1](pa.table(columns))["clip_score"])

    return run


def loop_way(work: Work, dtype: torch.dtype) -> Callable[[Sequence[np.ndarray], Sequence[str]], np.ndarray]:
    """Return the loop of transformers' documentation: processor and tokenizer, model, cosine."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    network = CLIPModel.from_pretrained(work.model, dtype=dtype).to(work.device).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(work.model), AutoTokenizer.from_pretrained(work.model)
    length = network.config.text_config.max_position_embeddings

    def run(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(pictures), LOOP_BATCH):
            part, texts = list(pictures[start : start + LOOP_BATCH]), list(captions[start : start + LOOP_BATCH])
            pixels = processor(images=part, return_tensors="pt")["pixel_values"].to(work.device, dtype)
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            with torch.inference_mode():
                output = network(pixel_values=pixels, **tokens.to(work.device))
            image, text = (
                functional.normalize(side.float(), dim=-1) for side in (output.image_embeds, output.text_embeds)
            )
            found.append((image * text).sum(dim=-1).cpu().numpy())
        return np.concatenate(found)

    return run


def compare_precision(work: Work, count: int) -> float:
    """Return the largest difference of a score between Winnow's features and those of single precision, from the same pixels."""
    from transformers import CLIPModel

    model: TwoTowerModel = load_model(work.model)
    network = CLIPModel.from_pretrained(work.model, dtype=torch.float32).to(work.device).eval()
    pixels, ids = pa.chunked_array([work.pixels.slice(0, count)]), work.ids.slice(0, count)
    ours = (model.encode_images(pixels) * model.encode_ids(ids, load_tokenize(work.model).pad_id)).sum(axis=1)
    settings, found = load_settings(work.model), []
    for start in range(0, count, LOOP_BATCH):
        size = min(LOOP_BATCH, count - start)
        images = np.empty((size, *settings.size, 3), np.uint8)
        fill_images(settings, pixels.slice(start, size), images)
        scaled = (images * np.float32(settings.scale) - np.float32(settings.mean)) / np.float32(settings.std)
        rows = [torch.tensor(row) for row in ids.slice(start, size).to_pylist()]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        with torch.inference_mode():
            values = torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32)).to(work.device)
            image = functional.normalize(_feature(network.get_image_features(pixel_values=values)), dim=-1)
            text = functional.normalize(_feature(network.get_text_features(input_ids=padded.to(work.device))), dim=-1)
        found.append((image * text).sum(dim=-1).cpu().numpy())
    return float(np.abs(ours - np.concatenate(found)).max())


def timed(work: Work, run: Run) -> float:
    """Return the seconds that something takes, with all that it started on the device."""
    return timed_twice(work, run)[1]


def timed_twice(work: Work, run: Run) -> tuple[float, float]:
    """Return the seconds until something returns, and until all that it started on the device is done."""
    if work.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    returned = time.perf_counter()
    if work.device.type == "cuda":
        torch.cuda.synchronize()
    return returned - started, time.perf_counter() - started


def _feature(output: Any) -> torch.Tensor:
    # transformers 5 returns the projected feature inside an output object, 4 as a tensor.
    feature: torch.Tensor = output if hasattr(output, "shape") else output.pooler_output
    return feature


if __name__ == "__main__":
    raise SystemExit(main())
