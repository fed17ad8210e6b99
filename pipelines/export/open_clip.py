"""open_clip: tars of equal size with every caption in the JSON, `sizes.json`, and the command that trains on them.

open_clip draws one of several captions per sample by `--json-text-key` and `--json-text-key-probs`, goes on to the next key where a text
is empty, and knows no weights of samples: those become repetitions.
"""

import json
import shlex
from functools import partial
from typing import Any

from curate.executor import Executor
from curate.store import Store
from pipelines.export.repeat import NO_REPETITION
from pipelines.export.source import DatasetSource
from pipelines.export.target import ExportReport, Part, Target, split_evenly
from pipelines.export.tars import TarPlan, plan_tars, stock_members, tar_name, tar_pattern, write_tar
from schemas.progress import Progress

FORMAT = "open-clip"
SIZES_FILE = "sizes.json"
# open_clip's own default; it wants at least as many shards as workers.
_WORKERS = 4


def export(
    source: DatasetSource,
    out: str,
    *,
    executor: Executor,
    progress: Progress,
    shard_size: int = 10_000,
    num_samples: int = 0,
    is_weighted: bool = True,
) -> ExportReport:
    """Write a dataset's tars to the folder `out`, at most `shard_size` samples each; see `repeat` for `num_samples`."""
    settings = {"shard_size": shard_size, "num_samples": num_samples, "is_weighted": is_weighted}
    target = Target(out, FORMAT, {**source.identity(), **settings})
    if found := target.find():
        return found
    plan = plan_tars(source, num_samples=num_samples, is_weighted=is_weighted)
    parts = split_evenly(plan.num_samples, shard_size)
    target.run(partial(_write, plan, len(parts)), parts, executor, progress)
    sizes = {tar_name(part.number, len(parts)): part.stop - part.start for part in parts}
    # Where open_clip looks for the number of samples.
    target.write(SIZES_FILE, (json.dumps(sizes, indent=2) + "\n").encode())
    notes = {"left_out": NO_REPETITION, "command": make_command(plan, target.store.root, len(parts))}
    return target.publish(source.name, plan.num_samples, num_left_out=plan.num_left_out, notes=notes)


def make_command(plan: TarPlan, folder: str, num_tars: int) -> str:
    """Return open_clip's training command for the tars in `folder`: everything that concerns data; the model is yours to choose."""
    pattern = tar_pattern(folder, num_tars)
    if folder.startswith("s3://"):
        pattern = f"pipe:aws s3 cp {pattern} -"
    words: list[list[str]] = [
        ["python", "-m", "open_clip_train.main"],
        ["--dataset-type", "webdataset"],
        ["--train-data", pattern],
        ["--train-num-samples", str(plan.num_samples)],
        ["--workers", str(min(_WORKERS, num_tars))],
    ]
    shares = plan.caption_shares()
    if len(shares) > 1:
        words.append(["--json-text-key", ";".join(shares)])
        words.append(["--json-text-key-probs", *(f"{share:.6g}" for share in shares.values())])
    return " \\\n  ".join(shlex.join(line) for line in words)


def _write(plan: TarPlan, num_tars: int, store: Store, part: Part) -> dict[str, Any]:
    files, _, _ = write_tar(plan, store, part, tar_name(part.number, num_tars), stock_members)
    return {"files": files}
