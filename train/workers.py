"""Worker processes that fill batches of pictures into shared memory.

Each worker is a fresh interpreter joined by one socket: no fork of a process that holds GPU contexts or threads, no re-import of the
user's main module, and a death on either side closes the socket, so that the parent raises instead of waiting for ever and an orphaned
worker ends. A worker owns a fixed stretch of every batch, writes its pictures in place, and sends only the texts.
"""

import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from schemas.errors import WinnowError
from train.sampler import Indices

Pixels = npt.NDArray[np.uint8]
# What a job says of each picture beside its pixels: up to NUM_FACTS numbers, and what they mean is the job's affair.
Facts = npt.NDArray[np.int32]
NUM_FACTS = 6

# What travels: (sequence, slot, key, first row, row after the last) and (sequence, texts or what went wrong).
_Order = tuple[int, int, tuple[int, ...], int, int]
_Answer = tuple[int, list[str] | WinnowError]

_STOP_SECONDS = 5.0
# One thread a worker: the processes are the parallelism, and spinning thread pools on shared cores cost more than they give.
_CHILD = """
import os, sys
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
sys.path[:] = {path!r}
from train.workers import serve
serve({connection}, {memory})
"""


class WorkerError(WinnowError):
    """A loader worker died or failed; the message says how."""


class Job(Protocol):
    """What workers do; pickled to each of them once."""

    def start(self) -> None:
        """Prepare a worker process: called once, in the worker only."""

    def fill(self, key: tuple[int, ...], first: int, indices: Indices, images: Pixels, facts: Facts) -> list[str]:
        """Write the pictures of `indices[i]` into `images[i * v]` and the v - 1 after it, (S, S, 3) each, and return the texts.

        `facts` (rows x v, NUM_FACTS) takes what else there is to say of each picture.

        `key` is the request's; `indices[0]` is row `first` of the request.
        """


@dataclass(frozen=True)
class Request:
    """One batch to fill: the rows to show and what the job needs to know besides them."""

    key: tuple[int, ...]
    indices: Indices


@dataclass(frozen=True)
class Filled:
    """A filled batch; the memory of `images` (rows x views, S, S, 3) is used again when nothing refers to it any more."""

    request: Request
    images: Pixels
    texts: list[str]
    facts: Facts


@dataclass(frozen=True)
class Layout:
    """How the shared memory is cut: `num_slots` batches of up to `max_rows` indices and pictures."""

    num_slots: int
    max_rows: int
    image_size: int
    num_views: int = 1  # pictures per row

    @property
    def num_bytes(self) -> int:
        """The size of the shared memory, at least one byte."""
        return max(1, self.num_slots * self._slot_bytes)

    def map(self, descriptor: int) -> list[tuple[Indices, Pixels, Facts]]:
        """Return each slot's indices, pictures and facts."""
        memory = mmap.mmap(descriptor, self.num_bytes)
        slots = []
        for slot in range(self.num_slots):
            start = slot * self._slot_bytes
            indices = np.frombuffer(memory, dtype=np.int64, count=self.max_rows, offset=start)
            shape = (self.max_rows * self.num_views, self.image_size, self.image_size, 3)
            start += 8 * self.max_rows
            facts = np.frombuffer(memory, dtype=np.int32, count=NUM_FACTS * shape[0], offset=start).reshape(
                -1, NUM_FACTS
            )
            start += 4 * NUM_FACTS * shape[0]
            pixels = np.frombuffer(memory, dtype=np.uint8, count=int(np.prod(shape)), offset=start).reshape(shape)
            slots.append((indices, pixels, facts))
        return slots

    @property
    def _slot_bytes(self) -> int:
        size = self.max_rows * (8 + self.num_views * (4 * NUM_FACTS + 3 * self.image_size**2))
        return size + -size % 64


@dataclass
class _Task:
    """A request under way."""

    slot: int
    request: Request
    waiting: set[int]  # workers that have not answered
    texts: dict[int, list[str]] = field(default_factory=dict)


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    connection: "Connection[object, object]"


class WorkerPool:
    """Fills requests in order, `prefetch` of them ahead; with `num_workers=0` in this process, on demand.

    Workers start at the first `run` and stay until `close`, the end of the process, or an error.
    """

    def __init__(
        self, job: Job, *, max_rows: int, image_size: int, num_workers: int, prefetch: int = 3, num_views: int = 1
    ) -> None:
        self._job = job
        self._num_workers = num_workers
        # Besides the batches being made: the one in use, and the one that is being asked for.
        self._layout = Layout(max(1, prefetch) + 2, max_rows, image_size, num_views)
        self._workers: list[_Worker] = []
        self._slots: list[tuple[Indices, Pixels, Facts]] = []
        self._tasks: dict[int, _Task] = {}
        self._free: deque[int] = deque()
        self._kept: dict[int, weakref.ref[Pixels]] = {}  # slots that a caller still refers to
        self._sequence = 0
        self._runs = 0
        self._finalizer: weakref.finalize[[list[_Worker]], WorkerPool] | None = None

    def run(self, requests: Iterable[Request]) -> Iterator[Filled]:
        """Yield the filled requests in order. One run at a time: starting another ends the one before."""
        return self._run_workers(iter(requests)) if self._num_workers else self._run_here(iter(requests))

    @property
    def pids(self) -> list[int]:
        """The process ids of the running workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End the workers."""
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = None
        self._workers, self._slots, self._tasks = [], [], {}
        self._free, self._kept = deque(), {}

    def _run_here(self, requests: Iterator[Request]) -> Iterator[Filled]:
        size = self._layout.image_size
        for request in requests:
            images = np.empty((len(request.indices) * self._layout.num_views, size, size, 3), dtype=np.uint8)
            facts = np.zeros((len(images), NUM_FACTS), dtype=np.int32)
            texts = self._job.fill(request.key, 0, request.indices, images, facts)
            yield Filled(request, images, texts, facts)
            del images

    def _run_workers(self, requests: Iterator[Request]) -> Iterator[Filled]:
        self._runs += 1
        run = self._runs
        with self._closing_on_error():
            self._start()
            while any(task.waiting for task in self._tasks.values()):  # an earlier run was left in the middle
                self._receive()
            self._free.extend(task.slot for task in self._tasks.values())
            self._tasks.clear()
        order: deque[int] = deque()
        while True:
            with self._closing_on_error():
                while self._free and (request := next(requests, None)) is not None:
                    order.append(self._submit(request, self._free.popleft()))
                if not order:
                    return
                task = self._tasks[order[0]]
                while task.waiting:
                    self._receive()
                del self._tasks[order.popleft()]
            # Before the slot may be free.
            facts = self._slots[task.slot][2][: len(task.request.indices) * self._layout.num_views].copy()
            yield Filled(
                task.request,
                self._hand_out(task, may_keep=len(self._free) + len(order) > 1),
                [text for worker in sorted(task.texts) for text in task.texts[worker]],
                facts,
            )
            if run != self._runs:
                raise RuntimeError(
                    "these batches ended when others were asked for; use one iterator of a loader at a time"
                )

    def _hand_out(self, task: _Task, *, may_keep: bool) -> Pixels:
        """Return a task's pictures; its slot is free when the caller has dropped them, or at once where that would stop the workers."""
        images = self._slots[task.slot][1][: len(task.request.indices) * self._layout.num_views]
        if not may_keep:
            self._free.append(task.slot)
            return images.copy()
        # Tensors made of the array hold it. A closed pool forgets its slots, and the memory goes with the last array.
        self._kept[task.slot] = weakref.ref(images, partial(_release, self._kept, self._free, task.slot))
        return images

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()  # the sockets may hold half a message
            raise

    def _submit(self, request: Request, slot: int) -> int:
        rows = len(request.indices)
        self._slots[slot][0][:rows] = request.indices
        self._sequence += 1
        task = _Task(slot, request, set())
        for number, worker in enumerate(self._workers):
            first, last = self._stretch(number, rows)
            if first == last:
                continue
            task.waiting.add(number)
            try:
                worker.connection.send((self._sequence, slot, request.key, first, last))
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _death(worker) from error
        self._tasks[self._sequence] = task
        return self._sequence

    def _stretch(self, worker: int, rows: int) -> tuple[int, int]:
        return rows * worker // self._num_workers, rows * (worker + 1) // self._num_workers

    def _receive(self) -> None:
        """Take in every answer that has arrived; wait for one if there is none."""
        numbers = {id(worker.connection): number for number, worker in enumerate(self._workers)}
        for connection in wait([worker.connection for worker in self._workers]):
            number = numbers[id(connection)]
            try:
                sequence, answer = cast(_Answer, self._workers[number].connection.recv())
            except (EOFError, ConnectionResetError) as error:
                raise _death(self._workers[number]) from error
            if isinstance(answer, WinnowError):
                raise answer
            task = self._tasks[sequence]
            task.texts[number] = answer
            task.waiting.remove(number)

    def _start(self) -> None:
        if self._workers:
            return
        with _shared_memory(self._layout.num_bytes) as memory:
            self._slots = self._layout.map(memory)
            self._free = deque(range(self._layout.num_slots))
            workers: list[_Worker] = []
            self._finalizer = weakref.finalize(self, _stop, workers)
            for _ in range(self._num_workers):
                workers.append(_spawn(memory))  # noqa: PERF401  the finalizer must see each one at once
        self._workers = workers
        greeting = pickle.dumps((self._job, self._layout))
        for worker in workers:
            try:
                worker.connection.send_bytes(greeting)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _death(worker) from error


def serve(connection_descriptor: int, memory_descriptor: int) -> None:
    """Work until the parent closes the connection: the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    connection: Connection[object, object] = Connection(connection_descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        job: Job
        layout: Layout
        job, layout = pickle.loads(connection.recv_bytes())
        slots = layout.map(memory_descriptor)
        job.start()
        while True:
            sequence, slot, key, first, last = cast(_Order, connection.recv())
            indices, images, facts = slots[slot]
            answer: list[str] | WinnowError
            try:
                own = slice(first * layout.num_views, last * layout.num_views)
                answer = job.fill(key, first, indices[first:last].copy(), images[own], facts[own])
            except WinnowError as error:
                answer = error
            except BaseException:  # noqa: BLE001  whatever it is, the parent raises it
                answer = WorkerError(f"loader worker {os.getpid()} failed:\n{traceback.format_exc()}")
            connection.send((sequence, answer))


@contextlib.contextmanager
def _shared_memory(num_bytes: int) -> Iterator[int]:
    """Yield the descriptor of memory without a name: it is gone with the last process that maps it, however that process ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("winnow-loader")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, num_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def _spawn(memory: int) -> _Worker:
    ours, theirs = Pipe()
    code = _CHILD.format(path=sys.path, connection=theirs.fileno(), memory=memory)
    process = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=(theirs.fileno(), memory), stdin=subprocess.DEVNULL
    )
    theirs.close()
    return _Worker(process, ours)


def _release(kept: dict[int, "weakref.ref[Pixels]"], free: deque[int], slot: int, _: object) -> None:
    kept.pop(slot, None)
    free.append(slot)


def _death(worker: _Worker) -> WorkerError:
    try:
        code = worker.process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return WorkerError(f"loader worker {worker.process.pid} closed its connection")
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        hint = "; the machine may be out of memory: use fewer workers" if -code == signal.SIGKILL else ""
    else:
        how, hint = f"ended with exit code {code}", "; its own message is above"
    return WorkerError(f"loader worker {worker.process.pid} {how}{hint}")


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        try:
            worker.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
