"""Ray, and the only Ray code in `curate/`: runs functions over units of work and survives lost workers.

Locally it starts Ray on this machine; with an address it joins a cluster. Both run the same code. Ray starts with the first unit, so a
stage that has nothing to do costs nothing.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar

from schemas.errors import InputError, WinnowError

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit")
Item = TypeVar("Item")
Result = TypeVar("Result")

# One thread per process: OpenMP's spinning threads make two busy processes on two cores ten times slower than one thread each.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# A unit whose worker died is innocent more often than one that raised: a neighbour's memory, a reclaimed machine.
_MAX_LOST_WORKERS = 5
_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome(Generic[Unit, Result]):
    """What became of a unit: a result, or the error that remained after every retry (`cause` is the exception, where one was raised)."""

    unit: Unit
    result: Result | None
    error: str | None
    cause: Exception | None = None


@dataclass
class _Attempt(Generic[Unit]):
    """A unit and how often it went wrong."""

    unit: Unit
    num_raised: int = 0
    num_lost: int = 0


@dataclass
class _Flight(Generic[Unit]):
    """The units that are running, by the reference of their result."""

    submit: Callable[[Unit], Any]
    max_retries: int
    running: dict[Any, _Attempt[Unit]] = field(default_factory=dict)

    def start(self, attempt: _Attempt[Unit]) -> None:
        self.running[self.submit(attempt.unit)] = attempt


class Executor:
    """Runs units of work on Ray; a context manager that stops Ray on leaving if it was the one to start it.

    Executor()                           # this machine, a worker per CPU
    Executor(num_workers=2)              # at most two units at a time
    Executor(address="auto")             # the cluster this machine belongs to; also "ray://head:10001"
    """

    def __init__(self, *, address: str | None = None, num_workers: int | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise InputError(f"num_workers is {num_workers}; it must be at least 1")
        self._address = address
        self._num_workers = num_workers
        self._has_started = False

    def __enter__(self) -> "Executor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop Ray if this executor started it."""
        if self._has_started:
            import ray

            ray.shutdown()
            self._has_started = False

    def map(
        self,
        function: Callable[[Unit], Result],
        units: Iterable[Unit],
        *,
        cpus: float = 1.0,
        max_in_flight: int | None = None,
        max_retries: int = 2,
    ) -> Iterator[Outcome[Unit, Result]]:
        """Yield the outcome of `function(unit)` for every unit, in order of completion.

        Units are pulled only as workers become free, at most `max_in_flight` at once (default: as many as there are workers). A unit that
        raises is tried again `max_retries` times, except where a `WinnowError` says that trying again cannot help; one whose worker died
        is tried again up to five times, so what `function` does must be repeatable. Leaving the iteration early, or Ctrl-C, cancels what
        is running.
        """

        def connect() -> Callable[[Unit], Any]:
            import ray

            self.start()
            self._require_cpus(cpus)
            remote = ray.remote(num_cpus=cpus, max_retries=0)(_call)
            shared = ray.put(function)  # serialised once, not once for every unit
            return lambda unit: remote.remote(shared, unit)

        return self._drain(connect, units, lambda: max_in_flight or self._num_slots(cpus), max_retries)

    def share_module(self, module: ModuleType) -> None:
        """Send the code of `module` along with whatever refers to it: for operators that are files of the user's, not installed."""
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(module)

    def start(self) -> None:
        """Start or join Ray now instead of with the first unit; does nothing where Ray is up already."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it is imported
        import ray

        if ray.is_initialized():
            return
        options: dict[str, Any] = {
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
        }
        if self._address is None:
            # Logical CPUs, twice the real ones: with exactly as many as real ones, an actor and the task that feeds it can wait for each
            # other for ever on a small machine. How much really runs at once is bounded by `num_workers`.
            options |= {
                "num_cpus": max(4, 2 * _count_cpus(), 2 * (self._num_workers or 0)),
                "include_dashboard": False,
                "address": "local",
            }
        else:
            options["address"] = self._address
        try:
            ray.init(**options)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise InputError(
                f"cannot join the Ray cluster at {self._address!r}: {error}; start one with `ray start --head`, and set RAY_AUTH_MODE "
                f"here as it is set there"
            ) from error
        self._has_started = True

    def _num_slots(self, cpus: float) -> int:
        """Return how many units of `cpus` each may run at once."""
        if self._num_workers is not None:
            return self._num_workers
        if self._address is None:
            return max(1, int(_count_cpus() / max(cpus, 1.0)))
        import ray

        # Asked again every time, because a cluster may grow; one unit more for each two keeps workers busy while results travel.
        total = float(ray.cluster_resources().get("CPU", 1.0))
        return max(1, int(1.5 * total / max(cpus, 0.01)))

    def _require_cpus(self, cpus: float) -> None:
        """Raise instead of waiting for ever, as Ray does when no node can ever hold a task."""
        import ray

        largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if cpus > largest:
            raise InputError(
                f"a unit needs {cpus:g} CPUs and the largest node of this Ray cluster has {largest:g}; it would wait for ever: "
                f"ask for fewer CPUs or add a larger node"
            )

    def _drain(
        self,
        connect: Callable[[], Callable[[Unit], Any]],
        units: Iterable[Unit],
        limit: Callable[[], int],
        max_retries: int,
    ) -> Iterator[Outcome[Unit, Result]]:
        queue = iter(units)
        flight: _Flight[Unit] | None = None
        try:
            is_exhausted = False
            while True:
                while not is_exhausted and (flight is None or len(flight.running) < limit()):
                    try:
                        unit = next(queue)
                    except StopIteration:
                        is_exhausted = True
                        break
                    flight = flight or _Flight(connect(), max_retries)
                    flight.start(_Attempt(unit))
                if flight is None or not flight.running:
                    return
                yield from _collect(flight)
        finally:
            # Reached by Ctrl-C and by a caller that stops early as well; nothing runs here after an ordinary end.
            if flight is not None:
                _cancel(flight.running)


def _call(function: Callable[[Unit], Result], unit: Unit) -> Result:
    return function(unit)


def _collect(flight: _Flight[Unit]) -> Iterator[Outcome[Unit, Any]]:
    """Yield the outcomes of the units that are done, and start again those that went wrong and may be retried."""
    import ray

    done, _ = ray.wait(list(flight.running), num_returns=1, timeout=_WAIT_SECONDS)
    for reference in done:
        attempt = flight.running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            attempt.num_raised += 1
            if isinstance(cause, WinnowError) or attempt.num_raised > flight.max_retries:
                logger.debug("unit failed unit=%s traceback=%s", attempt.unit, error)
                yield Outcome(attempt.unit, None, f"{type(cause).__name__}: {cause}", cause)
                continue
            logger.warning("unit raised, trying again unit=%s error=%s: %s", attempt.unit, type(cause).__name__, cause)
        except ray.exceptions.RayError as error:
            attempt.num_lost += 1
            if attempt.num_lost > _MAX_LOST_WORKERS:
                yield Outcome(attempt.unit, None, _explain_loss(error), error)
                continue
            logger.warning("worker lost, trying again unit=%s error=%s", attempt.unit, type(error).__name__)
        else:
            yield Outcome(attempt.unit, result, None)
            continue
        flight.start(attempt)


def _explain_loss(error: Exception) -> str:
    """Return the first line of Ray's long explanation of a dead worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'the worker died'} ({_MAX_LOST_WORKERS + 1} workers died on this unit)"


def _cancel(running: dict[Any, Any]) -> None:
    import ray

    if not ray.is_initialized():
        return
    for reference in running:
        with suppress(ray.exceptions.RayError, ValueError, TypeError):
            ray.cancel(reference, force=True)


def _count_cpus() -> int:
    """Return the CPUs this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
