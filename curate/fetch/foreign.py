"""`--fetcher img2dataset`: the real package fetches the bytes in a process that can be ended; everything after is ours.

So both fetchers give the same pool. What a `Fence` cannot give it are per-host limits and back-off by host.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa

from curate.fetch.addresses import parse_url
from curate.fetch.config import DownloadConfig
from curate.fetch.errors import CUT_OFF, DEADLINE, OPTED_OUT, PermanentError
from curate.fetch.foreign_process import OUTCOME_FILE, TASK_FILE, ForeignTask
from curate.fetch.transform import Transformed, failed_download, transform
from curate.fetch.writer import Spool
from curate.tar import index_tar
from schemas.sample import STATUS_SUCCESS

# The process stops by itself at the deadline; this is how long it may take to notice.
_GRACE_SECONDS = 60.0
_LOG_BYTES = 2000


def fetch_rows_with_img2dataset(
    rows: pa.Table, wanted: Sequence[int], config: DownloadConfig, spool: Spool, report: Callable[[Transformed], None]
) -> dict[int, Transformed]:
    """Fetch some rows of a shard with img2dataset; images of successes go to `spool`."""
    urls, hashes = rows["url"].to_pylist(), rows["sha256"].to_pylist()
    results: dict[int, Transformed] = {}
    targets: dict[int, str] = {}
    for row in wanted:
        try:
            targets[row] = parse_url(urls[row]).url
        except PermanentError as error:
            results[row] = failed_download(str(error))
    with tempfile.TemporaryDirectory(prefix="winnow-img2dataset-") as name:
        if targets:
            folder = Path(name)
            _run(folder, ForeignTask(list(targets.values()), config, config.shard_seconds))
            results |= _collect(folder, list(targets), hashes, config, spool)
    for row in wanted:
        report(results[row])
    return results


def _run(folder: Path, task: ForeignTask) -> None:
    (folder / TASK_FILE).write_bytes(pickle.dumps(task))
    # `env` sets what albumentations reads at its import: without it every process asks PyPI for news.
    command = ["env", "NO_ALBUMENTATIONS_UPDATE=1", "WANDB_MODE=disabled", f"TMPDIR={folder}", sys.executable]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-m", "curate.fetch.foreign_process", str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(task.seconds + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0  # rows without an outcome say so themselves
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        end = log.read_text(errors="replace")[-_LOG_BYTES:]
        raise RuntimeError(f"img2dataset ended with {code}: {end}")


def _collect(
    folder: Path, rows: list[int], hashes: list[str | None], config: DownloadConfig, spool: Spool
) -> dict[int, Transformed]:
    """Transform what the passes brought; a later pass replaces an earlier one's failures."""
    results = {row: failed_download(DEADLINE) for row in rows}
    trails: dict[int, set[str]] = {row: set() for row in rows}
    opted_out: set[str] = set()
    with ThreadPoolExecutor(max_workers=config.decode_threads, thread_name_prefix="decode") as threads:
        for outcome_path in sorted(folder.glob(f"*/{OUTCOME_FILE}")):
            outcome = json.loads(outcome_path.read_text())
            opted_out.update(outcome["opted_out"])
            places = [rows[index] for index in outcome["rows"]]
            for row, message, trail in zip(places, outcome["messages"], outcome["trails"], strict=True):
                trails[row].update(trail)
                # A success without bytes is what img2dataset makes of an empty body.
                results[row] = failed_download(CUT_OFF if message is None else message)
            images = _read_images(outcome_path.with_name("00000.tar"))
            while batch := list(islice(images, 4 * config.decode_threads)):  # few at a time: originals may be large
                transformed = threads.map(lambda item: transform(item[1], hashes[places[item[0]]], config), batch)  # noqa: B023
                for (index, _), result in zip(batch, transformed, strict=True):
                    if result.status == STATUS_SUCCESS:
                        spool.put(places[index], result.image)
                    results[places[index]] = replace(result, image=b"")
    for row in rows:
        if opted_out & trails[row]:
            results[row] = failed_download(OPTED_OUT)
    return results


def _read_images(tar: Path) -> Iterator[tuple[int, bytes]]:
    with tar.open("rb") as file:
        for member in list(index_tar(file)):
            if member.name.endswith(".jpg"):
                file.seek(member.offset)
                yield int(member.name.removesuffix(".jpg")), file.read(member.size)
