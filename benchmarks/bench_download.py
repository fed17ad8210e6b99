"""Winnow's fetcher against img2dataset on one loopback server, in one run, taking turns.

python -m benchmarks.bench_download                      # 4,000 small images, 1,000 large, 3,000 late ones; two rounds each
python -m benchmarks.bench_download --cases small late --rounds 5 --out FILE

The tools take turns, and who begins changes from round to round; a ratio is that of one round. Both tools get the same list, the same number of processes and connections, the same mode (keep_ratio) and quality (95), and write the
same layout. The server is a process of its own; its CPU time is not counted. Rates are taken from the shards' `_stats.json` (first
start to last end), so that start-up is not in them; the whole wall time, start-up included, has a column of its own. CPU seconds cover
all processes of a tool, found by a mark in their environment.

Pictures: the real photos of `../shared/data` (or WINNOW_DATA) where present, else generated ones.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_SIZE = 224
NUM_PROCESSES = 2
CONNECTIONS = 32  # per process
LATENCY_SECONDS = 0.2
SMALL = ("coco/**/*.jpg", "openstax/**/*.jpg", "grocery/**/*.jpg")
LARGE = (
    "copies/bridge-mods/*orig.jpg",
    "copies/bridge-mods/*-a-*.jpg",
    "copies/bridge-mods/high*.jpg",
    "copies/dih/*.jpg",
)
MARK = "WINNOW_BENCHMARK_RUN"
_TICKS = os.sysconf("SC_CLK_TCK")

_WINNOW = """
import sys
from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.download import download
from curate.store import Pool
from schemas.progress import SilentProgress
urls, out, size, shard, processes, connections = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
config = DownloadConfig(image_size=size, resize_mode="keep_ratio", shard_size=shard, connections=connections,
                        connections_per_host=connections * processes, allow_private=True)
with Executor(num_workers=processes) as executor:
    download(urls, Pool(out), config, executor=executor, progress=SilentProgress())
"""
_IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    urls, out, size, shard, processes, connections = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    download(url_list=urls, input_format="parquet", url_col="url", caption_col="caption", output_format="webdataset",
             output_folder=out, image_size=size, resize_mode="keep_ratio", number_sample_per_shard=shard,
             processes_count=processes, thread_count=connections, timeout=20)
"""


@dataclass(frozen=True)
class Measurement:
    """One run of one tool."""

    images_per_second: float  # between the first shard's start and the last shard's end
    cpu_ms_per_image: float  # of all its processes, between the same two moments
    wall_seconds: float  # of the command, start-up included
    total_cpu_ms_per_image: float  # start-up included


@dataclass(frozen=True)
class Case:
    """What is downloaded: `delay` seconds before each answer, `share` of the number of images asked for."""

    title: str
    delay: float
    share: float
    pictures: tuple[tuple[str, ...], tuple[int, int]]


CASES = {
    "small": Case("CPU-bound, 348 to 640 px", 0.0, 1.0, (SMALL, (320, 640))),
    "large": Case("CPU-bound, 1600 px", 0.0, 0.25, (LARGE, (1000, 1600))),
    "late": Case("latency-bound (200 ms)", LATENCY_SECONDS, 0.75, (SMALL, (320, 640))),
}


def main(arguments: Sequence[str]) -> int:
    """Run both cases and print a Markdown report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=4_000, help="images of `small`, the others have fewer")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each tool per case; the medians are shown")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to measure")
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    lines = [
        f"{IMAGE_SIZE} px keep_ratio, JPEG 95, {NUM_PROCESSES} processes x {CONNECTIONS} connections, {options.rounds} rounds.",
        "",
    ]
    lines += [
        "| case | images | tool | images/s | CPU ms/image | whole wall s | whole CPU ms/image |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in options.cases:
        case = CASES[name]
        files, _ = load_images(*case.pictures)
        lines += run_case(case, int(options.num_images * case.share), options.rounds, files)
    lines += [
        "",
        "Images/s and CPU ms/image leave start-up out, the last two columns have it in. A ratio is the median of the",
    ]
    lines += ["rounds' ratios, its smallest and largest in brackets."]
    for case in [CASES[name] for name in options.cases if not CASES[name].delay]:
        files, source = load_images(*case.pictures)
        lines += ["", f"{case.title}: {len(files)} distinct pictures ({source}).", "", *report_errors(files)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def run_case(case: Case, count: int, rounds: int, files: list[bytes]) -> list[str]:
    """Measure both tools in turns and return table rows."""
    tools = {"img2dataset": _IMG2DATASET, "winnow": _WINNOW}
    runs: dict[str, list[Measurement]] = {name: [] for name in tools}
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(files, case.delay, sender), daemon=True)
    server.start()
    try:
        port = receiver.recv()
        for turn in range(rounds):
            for name in sorted(tools, reverse=turn % 2 == 1):
                runs[name].append(measure(tools[name], port, count))
                print(
                    f"{case.title}: {name}, round {turn + 1} of {rounds}: {runs[name][-1]}", file=sys.stderr, flush=True
                )
    finally:
        server.terminate()
        server.join()
    head = f"| {case.title} | {count} |"
    return [
        *(f"{head} {name} | {' | '.join(show_medians(found))} |" for name, found in runs.items()),
        f"{head} winnow / img2dataset | {' | '.join(show_ratios(runs['winnow'], runs['img2dataset']))} |",
    ]


def show_medians(runs: list[Measurement]) -> list[str]:
    """Return the cells of one tool."""
    digits = (0, 2, 1, 2)
    return [f"{statistics.median(values):.{n}f}" for values, n in zip(columns(runs), digits, strict=True)]


def show_ratios(ours: list[Measurement], theirs: list[Measurement]) -> list[str]:
    """Return the cells that compare the runs of the same rounds."""
    ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(columns(ours), columns(theirs), strict=True)]
    return [f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})" for found in ratios]


def columns(runs: list[Measurement]) -> list[list[float]]:
    """Return the fields of measurements, a list of values for each."""
    return [[getattr(run, field.name) for run in runs] for field in fields(Measurement)]


def measure(script: str, port: int, count: int) -> Measurement:
    """Run one tool over a fresh list and folder."""
    shard_size = max(1, count // (2 * NUM_PROCESSES))
    with tempfile.TemporaryDirectory(prefix="bench-download-") as name:
        folder = Path(name)
        urls = [f"http://127.0.0.1:{port}/{index}.jpg" for index in range(count)]
        pq.write_table(
            pa.table({"url": urls, "caption": [f"picture {index}" for index in range(count)]}), folder / "urls.parquet"
        )
        (folder / "run.py").write_text(script)
        mark = secrets.token_hex(8)
        arguments = [folder / "urls.parquet", folder / "out", IMAGE_SIZE, shard_size, NUM_PROCESSES, CONNECTIONS]
        environment = {
            **os.environ,
            MARK: mark,
            "NO_ALBUMENTATIONS_UPDATE": "1",
            # Ray lets its workers yield to every other process; on a machine that others use, the other tool's do not.
            "RAY_worker_niceness": "0",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        with (folder / "log").open("wb") as log, CpuMeter(mark) as meter:
            start = time.monotonic()
            result = subprocess.run(
                [sys.executable, folder / "run.py", *map(str, arguments)],
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
            )
            wall = time.monotonic() - start
        if result.returncode:
            raise SystemExit(f"a run ended with {result.returncode}:\n{(folder / 'log').read_text()[-2000:]}")
        stats = [json.loads(path.read_text()) for path in (folder / "out").rglob("*_stats.json")]
    start_time, end_time = min(s["start_time"] for s in stats), max(s["end_time"] for s in stats)
    successes = sum(s["successes"] for s in stats)
    if successes != count:
        raise SystemExit(f"{count - successes} of {count} images failed; the benchmark compares only complete runs")
    steady_cpu = meter.at(end_time) - meter.at(start_time)
    return Measurement(
        successes / (end_time - start_time), 1000 * steady_cpu / successes, wall, 1000 * meter.seconds / successes
    )


class CpuMeter:
    """Adds up the CPU time of every process whose environment carries a mark, the detached ones too."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[str, bool] = {}
        self._ticks: dict[str, int] = {}
        self._history: list[tuple[float, float]] = [(0.0, 0.0)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def seconds(self) -> float:
        """CPU seconds seen so far; a process counts up to the last look at it, every 50 ms."""
        return sum(self._ticks.values()) / _TICKS

    def at(self, moment: float) -> float:
        """Return the CPU seconds used until a moment (seconds since 1970)."""
        times, values = zip(*self._history, strict=True)
        return float(np.interp(moment, times, values))

    def __enter__(self) -> "CpuMeter":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    if self._is_marked(entry):
                        values = (entry / "stat").read_text().rpartition(")")[2].split()
                        self._ticks[entry.name] = int(values[11]) + int(values[12])
                except OSError:  # it has just ended
                    continue
            self._history.append((time.time(), self.seconds))

    def _is_marked(self, entry: Path) -> bool:
        # A process between fork and exec still has its parent's environment, which carries the mark as well.
        if not self._known.get(entry.name):
            self._known[entry.name] = self._mark in (entry / "environ").read_bytes()
        return self._known[entry.name]


def serve(files: list[bytes], delay: float, sender: "multiprocessing.connection.Connection") -> None:
    """Serve `files` round robin by the number in the path, each after `delay` seconds: as little work per request as can be."""
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        for data in files
    ]

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            self.buffer = b""
            # Room for a whole answer: without it the server writes each in pieces, at the cost of both tools.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            while b"\r\n\r\n" in self.buffer:
                request, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
                path = request.split(b" ", 2)[1]
                number = path[1:].removesuffix(b".jpg")
                answer = (
                    answers[int(number) % len(answers)]
                    if number.isdigit()
                    else b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
                )
                is_last = b"connection: close" in request.lower()
                if delay:
                    asyncio.get_running_loop().call_later(delay, self.send, answer, is_last)
                else:
                    self.send(answer, is_last)

        def send(self, answer: bytes, is_last: bool) -> None:
            if not self.transport.is_closing():
                self.transport.write(answer)
                if is_last:
                    self.transport.close()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
        sender.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def load_images(patterns: Sequence[str], sides: tuple[int, int]) -> tuple[list[bytes], str]:
    """Return JPEG files of the data folder and where they come from; generated ones of these sides where it is absent."""
    folder = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))[:84]]
    if paths:
        return [path.read_bytes() for path in paths], "real photos and figures"
    return generate_images(sides), f"generated, {sides[0]} to {sides[1]} px"


def generate_images(sides: tuple[int, int], count: int = 48) -> list[bytes]:
    """Return pictures with the spectrum of photos: noise whose amplitude falls with frequency."""
    from curate.images import encode

    found = []
    for index in range(count):
        random = np.random.default_rng(index)
        height, width = (int(v) for v in random.integers(*sides, 2))
        frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(height, width)
        layers = [
            np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) / frequencies**1.2, (height, width))
            for _ in range(3)
        ]
        stacked = np.stack(layers, -1)
        found.append(encode(np.clip(128 + 48 * stacked / stacked.std(), 0, 255).astype(np.uint8), "jpg", 85))
    return found


def report_errors(files: list[bytes]) -> list[str]:
    """Return a table of how far each resize is from a floating-point reference, before JPEG encoding."""
    import cv2

    from curate.images import OVERSAMPLING, decode, plan_size, resize

    found: dict[str, list[tuple[float, float]]] = {"winnow": [], "img2dataset (cv2.INTER_AREA)": []}
    for data in files[:: max(1, len(files) // 60)]:
        full = decode(data)
        height, width = plan_size(full.shape[0], full.shape[1], IMAGE_SIZE, "keep_ratio")
        if height >= full.shape[0]:
            continue
        reduced = decode(data, min_side=int(OVERSAMPLING * min(height, width)) + 1)
        ours = resize(reduced, IMAGE_SIZE, "keep_ratio", original=(full.shape[0], full.shape[1]))
        theirs = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA)
        references = resample(full, height, width, area_weights), resample(full, height, width, lanczos_weights)
        for name, image in zip(found, (ours, theirs), strict=True):
            found[name].append((psnr(image, references[0]), psnr(image, references[1])))
    rows = ["Pixel error of the downscale, PSNR in dB (higher is nearer), mean over pictures:", ""]
    rows += ["| resize | exact area average (float64) | Lanczos-3 (float64) |", "|---|---|---|"]
    rows += [
        f"| {name} | {np.mean([v[0] for v in values]):.1f} | {np.mean([v[1] for v in values]):.1f} |"
        for name, values in found.items()
    ]
    return rows


def resample(rgb: np.ndarray, height: int, width: int, weights: "type[object] | object") -> np.ndarray:
    """Resize in float64 with explicit weight matrices."""
    vertical, horizontal = weights(rgb.shape[0], height), weights(rgb.shape[1], width)  # type: ignore[operator]
    return np.clip(
        np.einsum("ih,hwc->iwc", vertical, np.einsum("jw,hwc->hjc", horizontal, rgb.astype(np.float64))), 0, 255
    )


def area_weights(source: int, target: int) -> np.ndarray:
    """Return the (target, source) matrix of an exact area average."""
    edges = np.arange(target + 1) * source / target
    cells = np.arange(source)
    overlap = np.minimum(edges[1:, None], cells[None] + 1) - np.maximum(edges[:-1, None], cells[None])
    weights = np.maximum(overlap, 0)
    return weights / weights.sum(1, keepdims=True)


def lanczos_weights(source: int, target: int) -> np.ndarray:
    """Return the (target, source) matrix of a Lanczos-3 filter widened by the scale."""
    scale = max(1.0, source / target)
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    distance = (np.arange(source)[None] - centres[:, None]) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / max(1e-9, float(((image.astype(np.float64) - reference) ** 2).mean()))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
