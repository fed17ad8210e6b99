"""`winnow browse` over a synthetic million rows, measured as its page does: over HTTP, at the real server, in another process.

python -m benchmarks.bench_browse                        # builds the pool first (2 minutes, 6 GB)
python -m benchmarks.bench_browse --shards 10            # a quick look
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np

from benchmarks.bench_select import RULES, SHARD_ROWS, build_pool
from curate.images import encode
from curate.select import Selection, select
from curate.store import Pool
from curate.tar import TarWriter
from schemas.sample import STATUS_SUCCESS, shard_name

SHARDS = 100
NUM_PICTURES = 64
PICTURE_SIDE = 160
FILTER = "language.language = 'en' AND caption_num_words > 3"
RANGES = ["image_stats.image_sharpness:0.05..0.95", "caption_stats.caption_num_words:..18"]
SORTS = ["clip_score.clip_score", "-clip_score.clip_score", "image_stats.image_aspect_ratio", "random", ""]
# Connections that a browser opens to one host.
CONNECTIONS = 6


def main() -> None:
    """Build the pool where it is absent, start the server, and print what its answers take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default="/tmp/winnow-bench-browse", help="folder of the synthetic pool")
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--rounds", type=int, default=100, help="requests of each kind")
    parser.add_argument("--build-only", action="store_true", help="write the pool and end")
    options = parser.parse_args()
    folder = f"{options.pool}-{options.shards}x{SHARD_ROWS}"
    build_pool(folder, options.shards, SHARD_ROWS)
    write_tars(folder)
    selection = Selection(name="bench", rules=RULES)
    select(Pool(folder), selection)
    if options.build_only:
        return
    print(
        f"{options.shards * SHARD_ROWS:,} rows in {options.shards} shards; 6 operators, a selection of 8 rules, {NUM_PICTURES} pictures."
    )
    print("Targets: a page of the grid under 300 ms, the count of a moved slider under 200 ms.\n")
    started = time.perf_counter()
    with serve(folder) as address:
        opened = time.perf_counter() - started
        token = parse_qs(urlsplit(address).query)["token"][0]
        base = address.partition("/?")[0]
        with httpx.Client(base_url=base, timeout=60) as client:
            client.get("/", params={"token": token}).raise_for_status()
            print("| request | requests | p50 ms | p95 ms | slowest ms | CPU ms of the server, each |")
            print("| :-- | --: | --: | --: | --: | --: |")
            measure_all(client, options.rounds)
            with Path(f"/proc/{server_pid()}/status").open() as status:
                memory = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    print(f"\nFrom start to the address: {opened:.1f} s. Largest memory of the server: {int(memory) >> 10:,} MiB.")


def measure_all(client: httpx.Client, rounds: int) -> None:
    """Print a line for each kind of request."""
    rng = random.Random(0)

    def query(**changes: object) -> dict[str, object]:
        moved = f"clip_score.clip_score:{rng.uniform(0.1, 0.35):.4f}.."
        return {"filter": FILTER, "range": [*RANGES, moved], "selection": "bench", **changes}

    def fresh_filter() -> str:
        return f"caption_num_words > {rng.randint(1, 9)} AND language.language_probability > {rng.random():.6f}"

    def get(path: str, parameters: dict[str, object]) -> httpx.Response:
        return client.get(path, params=parameters).raise_for_status()  # type: ignore[arg-type]

    def few(most: int) -> int:
        return min(rounds, most)

    show("first count: columns are loaded, the filter is evaluated", 1, lambda _: get("/api/count", query()))
    show("slider: count with a filter, two other thresholds, a selection", rounds, lambda _: get("/api/count", query()))
    show(
        "slider: the same among dropped rows, undecided",
        rounds,
        lambda _: get("/api/count", query(outcome="dropped", decision="none")),
    )
    show("count under a filter not seen before", few(30), lambda _: get("/api/count", query(filter=fresh_filter())))
    for sort in SORTS:
        name = sort or "pool order"
        show(f"grid: first page ever by {name}", 1, lambda _, sort=sort: get("/api/grid", query(sort=sort)))
        show(f"grid: another query, by {name}", rounds, lambda _, sort=sort: get("/api/grid", query(sort=sort)))
    show(
        "grid: another page of the same query",
        rounds,
        lambda _: get("/api/grid", {"sort": "random", "offset": 60 * rng.randint(0, 1000)}),
    )
    show("grid under a filter not seen before", few(30), lambda _: get("/api/grid", query(filter=fresh_filter())))
    with ThreadPoolExecutor(CONNECTIONS) as pool:

        def grid_with_pictures(_: int) -> None:
            rows = get("/api/grid", {"sort": "random", "offset": 60 * rng.randint(0, 10_000)}).json()["rows"]
            paths = [row["image"] for row in rows if row["image"]]
            for answer in pool.map(client.get, paths):
                answer.raise_for_status()

        show("grid with its pictures for the first time", 1, grid_with_pictures)
        show("grid with its pictures, 60 rows at random", few(50), grid_with_pictures)
    uids = [row["uid"] for row in get("/api/grid", {"sort": "random", "limit": 100}).json()["rows"]]
    show("one sample in full", few(20), lambda number: get("/api/sample", {"uid": uids[number]}))
    headers = {"origin": str(client.base_url).rstrip("/")}

    def decide(number: int) -> None:
        content = {"uids": [uids[number]], "decision": "keep"}
        client.post("/api/decide", json=content, headers=headers).raise_for_status()

    show("keep, drop or flag a sample", few(50), decide)
    time.sleep(4)  # the decisions become an annotation meanwhile
    show("slider after decisions", rounds, lambda _: get("/api/count", query()))
    show(
        "filter on manual.decision after a decision",
        1,
        lambda _: (decide(60), get("/api/count", {"filter": "manual.decision = 'keep'"})),
    )
    client.post("/api/decide", json={"uids": uids, "decision": None}, headers=headers).raise_for_status()


def show(name: str, rounds: int, call: Callable[[int], object]) -> None:
    """Print what calls take, one after the other."""
    seconds = []
    before = cpu_seconds()
    for number in range(rounds):
        started = time.perf_counter()
        call(number)
        seconds.append(1000 * (time.perf_counter() - started))
    median, high = np.percentile(seconds, [50, 95])
    cpu = 1000 * (cpu_seconds() - before) / rounds
    print(f"| {name} | {rounds} | {median:.0f} | {high:.0f} | {max(seconds):.0f} | {cpu:.0f} |", flush=True)


_servers: list[subprocess.Popen[str]] = []


def server_pid() -> int:
    """Return the process of the server that was started last."""
    return _servers[-1].pid


def cpu_seconds() -> float:
    """Return what the server and the process of its filters have computed so far: a busy machine does not change it as it does the clock."""
    pid = server_pid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = 0
    for each in (pid, *children):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(folder: str) -> Iterator[str]:
    """Start `winnow browse` and yield its address."""
    command = [sys.executable, "-m", "pipelines.cli", "browse", "--pool", folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    _servers.append(server)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(timeout=60)


def write_tars(folder: str) -> None:
    """Write a tar for every shard: a picture, a text and a JSON for each sample that was downloaded."""
    pool = Pool(folder)
    missing = [shard for shard in pool.shards() if not pool.exists(f"shards/{shard_name(shard)}.tar")]
    with ProcessPoolExecutor() as workers:
        list(workers.map(partial(write_tar, folder), missing))


def write_tar(folder: str, shard: int) -> None:
    """Write the tar of one shard; every sample has one of a few pictures."""
    pool = Pool(folder)
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_PICTURES):
        small = generator.integers(0, 255, (5, 5, 3), dtype=np.uint8)
        pictures.append(encode(np.kron(small, np.ones((PICTURE_SIDE // 5,) * 2 + (1,), np.uint8)), "jpg", 80))
    rows = pool.read_table(pool.shard_parquet(shard), ["key", "status"]).to_pylist()
    with pool.commit(f"shards/{shard_name(shard)}.tar") as file:
        writer = TarWriter(file)
        for number, row in enumerate(rows):
            if row["status"] == STATUS_SUCCESS:
                writer.add(f"{row['key']}.jpg", pictures[number % NUM_PICTURES])
                writer.add(f"{row['key']}.json", b"{}" * 200)
                writer.add(f"{row['key']}.txt", b"a caption")
        writer.close()


if __name__ == "__main__":
    main()
