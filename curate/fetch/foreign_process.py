"""Runs the real img2dataset over the URLs of one shard, fenced; a process of its own, because only a process can be ended at a deadline.

    python -m curate.fetch.foreign_process FOLDER

FOLDER holds `task.pickle`; each pass leaves `NNN/00000.{tar,parquet}` and, last, `NNN/outcome.json`.
"""

import json
import os
import pickle
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.fetch.config import DownloadConfig
from curate.fetch.errors import is_temporary
from curate.fetch.fence import Fence

TASK_FILE = "task.pickle"
OUTCOME_FILE = "outcome.json"

_PARENT_SECONDS = 1.0


@dataclass(frozen=True)
class ForeignTask:
    """What the process is told: percent-encoded URLs, and how many seconds it has."""

    urls: list[str]
    config: DownloadConfig
    seconds: float


def main(folder: Path) -> None:
    """Fetch all URLs, then those with temporary errors again."""
    task: ForeignTask = pickle.loads((folder / TASK_FILE).read_bytes())
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    deadline = time.monotonic() + task.seconds
    fence = Fence(task.config, deadline)
    fence.install()
    pending = list(range(len(task.urls)))
    for attempt in range(task.config.retries + 1):
        fence.retry_after = 0.0
        messages = _run_pass(folder / f"{attempt:03d}", [task.urls[row] for row in pending], task.config)
        trails = {row: sorted(fence.trails.get(task.urls[row], ())) for row in pending}
        outcome = {
            "rows": pending,
            "messages": messages,
            "trails": [trails[row] for row in pending],
            "opted_out": sorted(fence.opted_out),
        }
        staging = folder / f"{attempt:03d}" / f"{OUTCOME_FILE}.staging"
        staging.write_text(json.dumps(outcome))
        staging.rename(staging.with_name(OUTCOME_FILE))
        pending = [row for row, message in zip(pending, messages, strict=True) if is_temporary(message)]
        jitter = random.Random(f"{task.config.seed}:{attempt}").uniform(0, 2 * task.config.backoff_seconds * 2**attempt)
        wait = max(jitter, min(fence.retry_after, task.config.max_retry_after_seconds))
        if not pending or attempt == task.config.retries or time.monotonic() + wait > deadline:
            return
        time.sleep(wait)


def _run_pass(folder: Path, urls: list[str], config: DownloadConfig) -> list[str | None]:
    """Download original bytes into one img2dataset shard and return the error message of each URL, None for a success."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    folder.mkdir()
    feather = folder / "0.feather"
    table = pa.table({"url": pa.array(urls, pa.string())})
    with pa.OSFile(str(feather), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    downloader = Downloader(
        WebDatasetSampleWriter,
        Resizer(config.image_size, "no", False, disable_all_reencoding=True),
        thread_count=min(config.connections, len(urls)),
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url"],
        timeout=config.request_seconds,
        number_sample_per_shard=len(urls),
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # it would repeat permanent errors too; the passes repeat the others
        user_agent_token=config.agent_token,
        disallowed_header_directives=list(config.disallowed_directives) or None,
    )
    succeeded, _ = downloader((0, str(feather)))
    if not succeeded:
        raise SystemExit("img2dataset failed; its traceback is above")
    found = pq.read_table(folder / "00000.parquet", columns=["key", "error_message"])
    by_row = {
        int(key): message
        for key, message in zip(found["key"].to_pylist(), found["error_message"].to_pylist(), strict=True)
    }
    return [by_row[row] for row in range(len(urls))]


def _end_with_parent(parent: int) -> None:
    """End this process when the worker that started it is gone; nobody else would."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
