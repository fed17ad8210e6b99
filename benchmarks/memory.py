"""The largest memory of a function, run in a process of its own."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, the largest memory of any one process in GiB, and what the function returned."""

    seconds: float
    gib: float
    result: Any


def measure(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Run a function in a fresh process; children that it starts and ends count by the largest of them."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, arguments))
    process.start()
    sender.close()  # or a child that fails would be waited for
    seconds, gib, result = receiver.recv()
    process.join()
    return Cost(seconds, gib, result)


def _run(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    start = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - start
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    gib = max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024**2
    sender.send((seconds, gib, result))
