"""How busy a server is kept by `winnow annotate`, and how fast answers come from the cache.

The server is a process on this machine that takes a fixed time for every answer and does nothing else, so that the share of its places
that are taken, from the first request to the last answer, is what the asker achieves. Pictures are decoded, reduced and encoded by the
same CPUs meanwhile. Beside it a bare client, which has nothing to do but to send as many requests that were ready before: what is missing
to its share is Winnow's, what is missing to 100 % there is the machine's. Cache hits are measured in one thread with nothing behind the cache, by the clock and in CPU time.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from curate.models.answer_cache import AnswerCache, CachedEngine
from curate.models.chat_protocol import request_body
from curate.models.engine import Answer, Engine, Message, Request, Sampling
from curate.store import Pool
from tests.llm_server import LlmServer
from tests.pool import Row, jpeg, write_shard

# In all a multiple of what runs at once: the last answers then leave no places empty.
SHARD_ROWS = (192, 64, 160, 96)
LATENCY = 4.0
CONCURRENCY = 32
TARGET_BUSY = 0.95
NUM_ANSWERS = 50_000
BATCH = 256
TARGET_HITS = 20_000
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        measure_busy(Path(folder))
        measure_hits(Path(folder) / "hits")


def measure_busy(folder: Path) -> None:
    """Print the share of the server's places that are taken while `winnow annotate` runs."""
    pool = Pool(folder / "pool")
    rng = np.random.default_rng(0)
    for shard, num_rows in enumerate(SHARD_ROWS):
        write_shard(pool, shard, [make_row(shard, number, rng) for number in range(num_rows)])
    log = folder / "server"
    log.mkdir()
    settings = f"model=fixed,engine=openai,concurrency={CONCURRENCY},image_size=384"
    with LlmServer(log, latency=LATENCY) as server:
        operator = f"{ROOT / 'tests' / 'asking.py'}:{settings},url={server.url}"
        command = [sys.executable, "-m", "pipelines.cli", "annotate", "--pool", pool.root, operator]
        began = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        wall = time.monotonic() - began
        spans = server.spans()
        server.forget()
        asyncio.run(ask_barely(server.url, sum(SHARD_ROWS)))
        bare = server.spans()
    print(
        f"{len(spans)} pictures of 512 x 384 in {len(SHARD_ROWS)} shards, {LATENCY:g} s an answer, {CONCURRENCY} at once\n"
    )
    print("| | from the first request to the last answer | whole command | places taken | target |")
    print("|---|---|---|---|---|")
    print(f"| winnow annotate | {length(spans):.1f} s | {wall:.1f} s | {share(spans):.1%} | {TARGET_BUSY:.0%} |")
    print(f"| bare client | {length(bare):.1f} s | | {share(bare):.1%} | |\n")


def length(spans: Sequence[tuple[float, float]]) -> float:
    """Return the seconds from the first request to the last answer."""
    return max(end for _, end in spans) - min(start for start, _ in spans)


def share(spans: Sequence[tuple[float, float]]) -> float:
    """Return how much of the server's places was taken."""
    return sum(end - start for start, end in spans) / (CONCURRENCY * length(spans))


async def ask_barely(url: str, num_requests: int) -> None:
    """Send requests that were made before, each place taken again as soon as it is free."""
    request = Request(
        messages=(Message(role="user", text="describe"),), image=make_row(0, 0, np.random.default_rng(0)).image or b""
    )
    body = request_body(request, Sampling(), "fixed", wants_log_probabilities=True)
    places = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=CONCURRENCY), timeout=60.0) as client:

        async def ask() -> None:
            async with places:
                (await client.post(f"{url}/chat/completions", content=body)).raise_for_status()

        await asyncio.gather(*(ask() for _ in range(num_requests)))


def make_row(shard: int, number: int, rng: np.random.Generator) -> Row:
    """Return a row with a picture of its own."""
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((512, 384), Image.Resampling.BICUBIC)
    return Row(
        url=f"https://example.org/{shard}/{number}.jpg", caption=f"number {number} of {shard}", image=jpeg(picture)
    )


class NothingBehind(Engine):
    """Answers at once, the first time."""

    def identity(self) -> Mapping[str, Any]:
        """Return a name."""
        return {"engine": "nothing"}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:  # noqa: ARG002
        """Return a caption of sixty words for each."""
        return [Answer(text="word " * 60, finish_reason="stop") for _ in requests]


def measure_hits(folder: Path) -> None:
    """Print how many answers a second come from the cache."""
    print("| request | puts/s | hits/s | hits per CPU second | target |")
    print("|---|---|---|---|---|")
    for name, image in (("400 characters", b""), ("400 characters and a picture of 20 kB", b"x" * 20_000)):
        engine = CachedEngine(NothingBehind(), AnswerCache(folder))
        requests = [
            Request(
                messages=(Message(role="user", text=f"describe {number} " * 20),),
                image=image and image + str(number).encode(),
            )
            for number in range(NUM_ANSWERS)
        ]
        puts = time_rows(engine, requests)
        hits = time_rows(engine, requests)
        print(f"| {name} | {puts[0]:,.0f} | {hits[0]:,.0f} | {hits[1]:,.0f} | {TARGET_HITS:,} |")


def time_rows(engine: Engine, requests: Sequence[Request]) -> tuple[float, float]:
    """Return rows per second of the clock, and per second of CPU time."""
    clock, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(requests), BATCH):
        engine.generate(requests[start : start + BATCH], Sampling())
    return len(requests) / (time.perf_counter() - clock), len(requests) / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
