"""Ray Train, and the only Ray code in `train/`: the same training in workers of a Ray cluster, started again when one is lost."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import InputError, StaleDatasetError, WinnowError
from schemas.progress import Progress, SilentProgress
from train.checkpoint import list_checkpoints, load_state, write_file
from train.config import TrainConfig
from train.index import read_index
from train.metrics import METRICS_FILE, read_metrics
from train.preflight import check_output, check_settings
from train.trainer import TrainReport, train

logger = logging.getLogger(__name__)

# Ray's own records, inside the run because every worker can write there; removed at the end.
_STORAGE = ".ray"
# What no second try can mend; its presence ends every further try at once.
_ERROR_FILE = "error.txt"
_POLL_SECONDS = 1.0


def launch_ray(
    dataset: str,
    out: str,
    config: TrainConfig,
    *,
    num_workers: int,
    address: str = "",
    max_failures: int = 5,
    progress: Progress | None = None,
) -> TrainReport:
    """Train as `train` does in `num_workers` Ray workers, each with a GPU where the cluster has any, otherwise with a CPU.

    `address` is a cluster's (empty: the Ray that is up, or a new one on this machine). `out` must be a folder that all workers share, and
    so must what the configuration names. After a lost worker all of them start again from the newest checkpoint, up to `max_failures`
    times. Starting takes about half a minute.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = Path(out).absolute()
    _check(dataset, run, config, num_workers)
    run.mkdir(parents=True, exist_ok=True)
    storage = run / _STORAGE
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir()
    before = max(list_checkpoints(run), default=0)
    _connect(address, num_workers)
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "dataset": dataset,
            "out": str(run),
            "config": config,
            "folder": str(Path.cwd()),
        },
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="train", storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )
    with _reporting(run, config, progress or SilentProgress()):
        _fit(trainer, storage)
    shutil.rmtree(storage)
    checkpoints = list_checkpoints(run)
    last = checkpoints[max(checkpoints)]
    state = load_state(last)
    return TrainReport(
        run=Path(out),
        checkpoint=Path(out) / last.relative_to(run),
        step=state.step,
        samples_seen=state.samples_seen,
        was_finished=state.step == before,
        rank=0,
    )


def _check(dataset: str, run: Path, config: TrainConfig, num_workers: int) -> None:
    """Raise what needs no worker to be known, before a cluster is asked for any."""
    check_settings(config, num_workers)
    read_index(dataset)
    check_output(run)


def _connect(address: str, num_workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it is imported
    # Else a node answers its first driver when the workers it begins with are all there: if one of them dies before, never.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **options)
        return
    # Logical CPUs beyond the real ones: with exactly as many, a worker and Ray's own tasks can wait for each other for ever.
    num_cpus = max(4, 2 * (os.cpu_count() or 1), 2 * num_workers)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)


def _fit(trainer: Any, storage: Path) -> None:
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise WinnowError(
            f"training failed in its Ray workers: {error}; the same command goes on from there"
        ) from error
    finally:
        message = storage / _ERROR_FILE
        if message.exists():
            raise InputError(message.read_text())


def _train_worker(job: dict[str, Any]) -> None:
    """Train in one worker; Ray Train has joined the processes already."""
    message = Path(job["out"]) / _STORAGE / _ERROR_FILE
    if message.exists():
        return
    if Path(job["folder"]).is_dir():
        os.chdir(job["folder"])  # relative paths mean what they mean to whoever launched this
    try:
        train(job["dataset"], job["out"], job["config"])
    except (InputError, StaleDatasetError) as error:
        write_file(message, str(error).encode())
        raise


@contextmanager
def _reporting(run: Path, config: TrainConfig, progress: Progress) -> Iterator[None]:
    """Advance a progress by what the workers have recorded."""
    done = threading.Event()

    def watch() -> None:
        samples = 0
        while True:
            ended = done.wait(_POLL_SECONDS)
            records = list(read_metrics(run / METRICS_FILE))
            if records and records[-1]["samples_seen"] > samples:
                seen = int(records[-1]["samples_seen"])
                progress.advance(seen - samples, loss=f"{records[-1]['loss']:.3f}")
                samples = seen
            if ended:
                return

    progress.start("train", config.samples_seen or None, "samples")
    watcher = threading.Thread(target=watch, name="winnow-progress")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        progress.close()
