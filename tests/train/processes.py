"""Runs a function in several processes joined by gloo, for tests of what they exchange."""

import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from train.distributed import World


def run_processes(
    size: int,
    folder: Path,
    function: Callable[[World], dict[str, torch.Tensor]],
    *,
    timeout: timedelta = timedelta(minutes=10),
) -> list[dict[str, torch.Tensor]]:
    """Call a module-level function in `size` processes and return what each returned.

    `timeout` is how long a process waits for the others in an exchange of the group.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_run, (size, port, str(folder), function, timeout), nprocs=size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _run(
    rank: int,
    size: int,
    port: int,
    folder: str,
    function: Callable[[World], dict[str, torch.Tensor]],
    timeout: timedelta,
) -> None:
    torch.set_num_threads(1)
    try:
        distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timeout
        )
        torch.save(function(World(rank=rank, size=size, local_size=size)), Path(folder) / f"{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
    finally:
        distributed.destroy_process_group()
