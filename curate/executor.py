"""Ray, and the only Ray code in `curate/`: runs functions over units of work and survives lost workers.

Locally it starts Ray on this machine; with an address it joins a cluster. Both run the same code. Ray starts with the first unit, so a
stage that has nothing to do costs nothing.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Generic, Protocol, TypeVar

from curate.node_watch import NodeWatch, dead_children, knock
from curate.prefetch import run_ahead
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
    # Threads that decode would give back the memory of every picture and wait for it to be cleared: a sixth of a large one's time.
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}
# A unit whose worker died is innocent more often than one that raised: a neighbour's memory, a reclaimed machine.
_MAX_LOST_WORKERS = 5
_WAIT_SECONDS = 1.0
_NODE_PROCESSES = frozenset(["gcs_server", "raylet"])
# An actor and a stream that feeds it take half a CPU each: on the smallest cluster there is, one CPU, both still find room.
_HALF_CPU = 0.5
# Units in flight per GPU: one to be consumed and at least one to be ready when it ends; more where many CPUs feed one GPU.
_MIN_STREAMS, _MAX_STREAMS = 2, 16
# Items that a stream may be ahead of its consumer: bounds memory, whatever the size of a unit.
_ITEMS_AHEAD = 2

Consume = Callable[[Unit, Iterator[Item]], Result]


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


class _Lanes(Protocol):
    """Where units run: plain tasks, or actors."""

    def has_room(self, num_running: int) -> bool: ...

    def submit(self, unit: Any) -> Any: ...

    def release(self, reference: Any) -> None: ...

    def cancel(self, references: Iterable[Any]) -> None: ...


@dataclass
class _Flight(Generic[Unit]):
    """The units that are running, by the reference of their result."""

    lanes: _Lanes
    max_retries: int
    running: dict[Any, _Attempt[Unit]] = field(default_factory=dict)

    def start(self, attempt: _Attempt[Unit]) -> None:
        self.running[self.lanes.submit(attempt.unit)] = attempt

    def land(self, reference: Any) -> _Attempt[Unit]:
        self.lanes.release(reference)
        return self.running.pop(reference)


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

    @property
    def has_started(self) -> bool:
        """Whether workers are up, whoever started them; until then the first unit pays for their start."""
        ray = sys.modules.get("ray")
        return bool(ray and ray.is_initialized())

    def close(self) -> None:
        """Stop Ray if this executor started it."""
        if self._has_started:
            import ray

            ray.shutdown()
            self._watch.stop()
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

        def connect() -> _Lanes:
            self.start()
            self._require_cpus(cpus)
            return _TaskLanes(function, cpus, lambda: max_in_flight or self._num_slots(cpus))

        return self._drain(connect, units, max_retries)

    def map_streams(
        self,
        produce: Callable[[Unit], Iterator[Item]],
        load: Callable[[], Consume[Unit, Item, Result]],
        units: Iterable[Unit],
        *,
        gpus: float = 1.0,
        max_retries: int = 2,
    ) -> Iterator[Outcome[Unit, Result]]:
        """Yield the outcome of `consume(unit, produce(unit))` for every unit, `consume` being what `load` returned.

        `load` runs once in each actor. Where the cluster has GPUs there is an actor for each (or several, with `gpus` below 1), and
        `produce` runs in ordinary tasks, a few items ahead, for at least two units of each actor, so that a GPU waits neither for a
        decoder nor at a unit's border; `consume` is called from several threads at once: lock what is not thread-safe. Without GPUs
        there is an actor per worker, which runs `produce` in a thread of its own: the CPUs are busy anyway, and half as many processes
        load half as many libraries. With `gpus=0` there is one actor in all, fed as a GPU is: it waits for a program elsewhere.
        """

        def connect() -> _Lanes:
            self.start()
            return self._actor_lanes(produce, load, gpus)

        return self._drain(connect, units, max_retries)

    def share_module(self, module: ModuleType) -> None:
        """Send the code of `module` along with whatever refers to it: for operators that are files of the user's, not installed."""
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(module)

    def start(self) -> None:
        """Start or join Ray now instead of with the first unit; does nothing where Ray is up already."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it is imported
        # Else a node answers its first driver when the workers it begins with are all there: if one of them dies before, never.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
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
        self._watch = NodeWatch(_has_dead_node)
        self._watch.start()
        try:
            knock(self._address)
            ray.init(**options)
            self._has_started = True
        except Exception as error:
            # Of many kinds, bare ones among them, where the node dies or does not come up in time.
            raise _explain_start(self._address, error) from error
        finally:
            (self._watch.has_started if self._has_started else self._watch.stop)()

    def num_parallel(self, cpus: float = 1.0) -> int:
        """Return how many units of `map` run at once, for limits that all of them share; starts Ray."""
        self.start()
        return self._num_slots(cpus)

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

    def _actor_lanes(self, produce: Callable[[Any], Iterator[Any]], load: Callable[[], Any], gpus: float) -> "_Lanes":
        import ray

        self._require_cpus(2 * _HALF_CPU)
        resources = ray.cluster_resources()
        num_cpus, num_gpus = float(resources.get("CPU", 1.0)), float(resources.get("GPU", 0.0))
        if not gpus:
            num_streams = min(max(self._num_slots(1.0), _MIN_STREAMS), _MAX_STREAMS)
            return _ActorLanes(produce, load, 1, num_streams, 0.0, is_fed=True)
        if num_gpus:
            if gpus > num_gpus:
                raise InputError(
                    f"an actor needs {gpus:g} GPUs and the Ray cluster has {num_gpus:g}; it would wait for ever"
                )
            num_actors = min(int(num_gpus / gpus), max(1, int(num_cpus)))
            num_streams = min(max(int(num_cpus / num_actors), _MIN_STREAMS), _MAX_STREAMS)
            return _ActorLanes(produce, load, num_actors, num_streams, gpus, is_fed=True)
        num_actors = min(self._num_slots(1.0), max(1, int(num_cpus)))
        return _ActorLanes(produce, load, num_actors, 1, 0.0, is_fed=False)

    def _drain(
        self, connect: Callable[[], _Lanes], units: Iterable[Unit], max_retries: int
    ) -> Iterator[Outcome[Unit, Result]]:
        waiting = iter(units)
        flight: _Flight[Unit] | None = None
        try:
            is_exhausted = False
            while True:
                while not is_exhausted and (flight is None or flight.lanes.has_room(len(flight.running))):
                    try:
                        unit = next(waiting)
                    except StopIteration:
                        is_exhausted = True
                        break
                    flight = flight or _Flight(connect(), max_retries)
                    flight.start(_Attempt(unit))
                if flight is None or not flight.running:
                    return
                yield from _collect(flight)
        finally:
            # Reached by Ctrl-C and by a caller that stops early as well; after an ordinary end nothing runs and actors are let go.
            if flight is not None:
                flight.lanes.cancel(flight.running)


class _TaskLanes:
    """Every unit is a Ray task of its own."""

    def __init__(self, function: Callable[[Any], Any], cpus: float, limit: Callable[[], int]) -> None:
        import ray

        self._remote = ray.remote(num_cpus=cpus, max_retries=0)(_call)
        self._function = ray.put(function)  # serialised once, not once for every unit
        self._limit = limit

    def has_room(self, num_running: int) -> bool:
        return num_running < self._limit()

    def submit(self, unit: Any) -> Any:
        return self._remote.remote(self._function, unit)

    def release(self, reference: Any) -> None:
        pass

    def cancel(self, references: Iterable[Any]) -> None:
        import ray

        for reference in references:
            with suppress(ray.exceptions.RayError, ValueError, TypeError):
                ray.cancel(reference, force=True)


class _ActorLanes:
    """Actors are made as units come, so that one unit does not load a model on every GPU; a unit goes to the least busy one."""

    def __init__(
        self,
        produce: Callable[[Any], Iterator[Any]],
        load: Callable[[], Any],
        num_actors: int,
        num_streams: int,
        gpus: float,
        *,
        is_fed: bool,  # by tasks of their own; otherwise an actor's threads do what its streams do
    ) -> None:
        import ray

        self._num_actors = num_actors
        self._num_streams = num_streams
        # Ray restarts an actor that died; the units it held come back as errors, and `_collect` submits them again.
        self._make = ray.remote(
            num_cpus=_HALF_CPU, num_gpus=gpus, max_restarts=-1, max_task_retries=0, max_concurrency=num_streams
        )(_StreamActor)
        self._arguments = (produce, load, is_fed)
        self._actors: list[Any] = []
        self._owner: dict[Any, int] = {}

    def has_room(self, num_running: int) -> bool:
        return num_running < self._num_actors * self._num_streams

    def submit(self, unit: Any) -> Any:
        loads = [0] * len(self._actors)
        for actor in self._owner.values():
            loads[actor] += 1
        if len(self._actors) < self._num_actors and all(loads):
            self._actors.append(self._make.remote(*self._arguments))
            loads.append(0)
        chosen = loads.index(min(loads))
        reference = self._actors[chosen].run.remote(unit)
        self._owner[reference] = chosen
        return reference

    def release(self, reference: Any) -> None:
        del self._owner[reference]

    def cancel(self, references: Iterable[Any]) -> None:  # noqa: ARG002  (ending the actors ends what they run)
        import ray

        # The streams belong to their actor and end with it.
        for actor in self._actors:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor)


class _StreamActor:
    """Consumes the streams of one unit, or of several at once, a thread each; what it loads is shared by them."""

    def __init__(self, produce: Callable[[Any], Iterator[Any]], load: Callable[[], Any], is_fed: bool) -> None:
        self._produce = produce
        self._load = load
        self._is_fed = is_fed
        self._lock = threading.Lock()
        self._consume: Any = None

    def run(self, unit: Any) -> Any:
        import ray

        try:
            with self._open(unit) as items:
                # Loaded here and not at the actor's birth: an error in it is the unit's error, with its text, and the first stream
                # runs meanwhile.
                with self._lock:
                    self._consume = self._consume or self._load()
                return self._consume(unit, items)
        except ray.exceptions.RayTaskError as error:
            # What the stream raised is the unit's own error; without this the driver would see it wrapped twice.
            raise error.cause if isinstance(error.cause, Exception) else error from None

    def _open(self, unit: Any) -> AbstractContextManager[Iterator[Any]]:
        if not self._is_fed:
            return run_ahead(self._produce(unit), _ITEMS_AHEAD)
        import ray

        remote = ray.remote(
            num_cpus=_HALF_CPU,
            max_retries=0,
            num_returns="streaming",
            _generator_backpressure_num_objects=_ITEMS_AHEAD,
        )(_stream)
        return nullcontext(ray.get(reference) for reference in remote.remote(self._produce, unit))


def _stream(produce: Callable[[Unit], Iterator[Item]], unit: Unit) -> Iterator[Item]:
    for item in produce(unit):  # noqa: UP028  (Ray drives the generator with `send`, which an inner iterator may not have)
        yield item


def _call(function: Callable[[Unit], Result], unit: Unit) -> Result:
    return function(unit)


def _collect(flight: _Flight[Unit]) -> Iterator[Outcome[Unit, Any]]:
    """Yield the outcomes of the units that are done, and start again those that went wrong and may be retried."""
    import ray

    done, _ = ray.wait(list(flight.running), num_returns=1, timeout=_WAIT_SECONDS)
    for reference in done:
        attempt = flight.land(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            failure = _judge(attempt, error, flight.max_retries)
            if failure is None:
                flight.start(attempt)
            else:
                yield failure
        else:
            yield Outcome(attempt.unit, result, None)


def _judge(attempt: _Attempt[Unit], error: Exception, max_retries: int) -> Outcome[Unit, Any] | None:
    """Return the outcome of a unit that went wrong for good, or None where it is to be tried again."""
    import ray

    raised = isinstance(error, ray.exceptions.RayTaskError)
    inner = getattr(error, "cause", None)
    cause = inner if raised and isinstance(inner, Exception) else error
    if not raised or (
        isinstance(cause, ray.exceptions.RayError) and cause is not error
    ):  # the worker, or one that fed it
        attempt.num_lost += 1
        if attempt.num_lost > _MAX_LOST_WORKERS:
            return Outcome(attempt.unit, None, _explain_loss(cause), cause)
        logger.warning("worker lost, trying again unit=%s error=%s", attempt.unit, type(cause).__name__)
        return None
    attempt.num_raised += 1
    if isinstance(cause, WinnowError) or attempt.num_raised > max_retries:
        logger.debug("unit failed unit=%s traceback=%s", attempt.unit, error)
        return Outcome(attempt.unit, None, f"{type(cause).__name__}: {cause}", cause)
    logger.warning("unit raised, trying again unit=%s error=%s: %s", attempt.unit, type(cause).__name__, cause)
    return None


def _explain_loss(error: Exception) -> str:
    """Return the first line of Ray's long explanation of a dead worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'the worker died'} ({_MAX_LOST_WORKERS + 1} workers died on this unit)"


def _explain_start(address: str | None, error: Exception) -> WinnowError:
    """Return the error of a start that failed, with the first line of Ray's reason."""
    import ray

    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if address is None:
        return WinnowError(
            f"Ray did not start on this machine: {reason}; run the same command again, it goes on where it was"
        )
    if isinstance(error, ConnectionError | ray.exceptions.AuthenticationError):
        reason += "; start one with `ray start --head`, and set RAY_AUTH_MODE here as it is set there"
    return InputError(f"cannot join the Ray cluster at {address!r}: {reason}")


def _has_dead_node() -> bool:
    """Tell whether a process of the local node has died; Ray knows its node only once every process of it runs."""
    import ray

    node = ray._private.worker._global_node
    return bool(dead_children(_NODE_PROCESSES) if node is None else node.dead_processes())


def _count_cpus() -> int:
    """Return the CPUs this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
