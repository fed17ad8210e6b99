"""Evaluates filters in a process of its own, which is ended when one takes too long.

DuckDB can be interrupted between vectors only, and one call of a function may take minutes. The process sees the pool through a catalog
that reads no other file; what a filter may say at all is decided by `pipelines.browse.guard`.
"""

import multiprocessing
import resource
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import numpy as np
import numpy.typing as npt

from curate.catalog import POOL, SAMPLES, Catalog
from curate.store import Pool
from pipelines.browse.guard import allowed_functions, check_filter
from pipelines.page.words import shorten
from schemas.errors import InputError, MissingColumnsError

DEFAULT_SECONDS = 10.0
# A filter needs a few bytes per row; this is for what somebody writes by mistake.
MEMORY_LIMIT = "2GB"
_MAX_ADDRESS_BYTES = 16 << 30
_START_SECONDS = 120.0
_MAX_MESSAGE = 600
_READY = "ready"
_TABLE = "filtered"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Request:
    generation: int  # of the annotations: another one, and the files are looked up anew
    text: str


class Evaluator:
    """Turns a filter into one truth value per row; one filter at a time, and safe to call from several threads."""

    def __init__(self, pool: Pool, num_rows: int, folder: str, *, seconds: float = DEFAULT_SECONDS) -> None:
        """`folder` is for temporary files: a process that was ended leaves its own behind."""
        self._folder = folder
        self._pool = pool
        self._num_rows = num_rows
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._is_ready = False
        self._spawn()

    def evaluate(self, text: str, generation: int = 0) -> Mask:
        """Return where the filter is true, in pool order; raises InputError where it is wrong, or takes longer than it may."""
        with self._lock:
            try:
                connection = self._start()
                connection.send(_Request(generation=generation, text=text))
                if not connection.poll(self._seconds):
                    self._end()
                    raise InputError(
                        f"the filter took longer than {self._seconds:g} s and was stopped; compare fewer columns, or leave out subqueries"
                    )
                answer = connection.recv()
            except (EOFError, OSError) as error:
                self._end()
                raise InputError(
                    "the filter ended the process that evaluates filters, most likely for lack of memory; make it simpler"
                ) from error
        if isinstance(answer, str):
            raise InputError(answer)
        mask: Mask = np.unpackbits(np.frombuffer(answer, np.uint8), count=self._num_rows).view(np.bool_)
        return mask

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _start(self) -> Connection:
        """Return the connection to a process that is ready."""
        if self._process is None or not self._process.is_alive():
            self._end()
            self._spawn()
        assert self._connection is not None
        # Loading libraries is not the filter's fault: its time starts when the process says that it is there.
        if not self._is_ready:
            if not self._connection.poll(_START_SECONDS) or self._connection.recv() != _READY:
                self._end()
                raise InputError(
                    "the process that evaluates filters does not start; close other programs and try again"
                )
            self._is_ready = True
        return self._connection

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._pool, self._num_rows, self._folder)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._connection = None
        self._is_ready = False


def _serve(connection: Connection, pool: Pool, num_rows: int, folder: str) -> None:
    """Answer requests until the other side is gone."""
    with suppress(ValueError, OSError):  # not every system lets a process bound itself
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    tempfile.tempdir = folder
    catalogs = _Catalogs(pool)
    with suppress(InputError):  # said to the first filter
        catalogs.at(0)
    connection.send(_READY)
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        for request in iter(connection.recv, None):
            try:
                answer: bytes | str = np.packbits(
                    evaluate_filter(catalogs.at(request.generation), request.text)
                ).tobytes()
                if len(answer) != -(-num_rows // 8):
                    answer = f"{pool.root} has other shards than when it was opened; start `winnow browse` again"
            except InputError as error:
                answer = shorten(str(error), _MAX_MESSAGE)
            except MemoryError:
                answer = "the filter needs more memory than it may have; make it simpler"
            connection.send(answer)
    catalogs.close()


class _Catalogs:
    """The catalog of the newest annotations."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._generation = -1
        self._catalog: Catalog | None = None

    def at(self, generation: int) -> Catalog:
        if self._catalog is None or generation != self._generation:
            self.close()
            self._catalog = Catalog(self._pool, memory_limit=MEMORY_LIMIT, sandboxed=True)
            self._catalog.connection.execute("SET lock_configuration = true")
            self._generation = generation
        return self._catalog

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()
        self._catalog = None


def evaluate_filter(catalog: Catalog, text: str) -> Mask:
    """Check a filter and return where it is true; raises InputError where it may not be evaluated or is no condition."""
    functions = allowed_functions(catalog.connection)
    condition = check_filter(
        catalog.connection, text, tables=[POOL, SAMPLES, *catalog.label_columns], functions=functions
    )
    labels = [label for label in catalog.used_labels([catalog.parse(condition)]) if _is_there(catalog, label)]
    expanded = catalog.expand(condition)
    with catalog.translate():
        source = catalog.source(labels, 0, 1)
        (kind,) = catalog.connection.sql(f"SELECT ({expanded}\n) AS found FROM {source}").types
    if str(kind) not in ("BOOLEAN", '"NULL"', "NULL"):
        raise InputError(
            f"the filter is {kind}, not a condition; compare it with something, such as {text.strip()} > 0"
        )
    catalog.tabulate(_TABLE, [f"coalesce(({expanded}\n), false) AS found"], labels)
    found = catalog.connection.sql(f"SELECT found FROM {_TABLE}").to_arrow_table()["found"]
    mask: Mask = found.to_numpy().astype(np.bool_)
    if len(mask) != sum(header.num_rows for header in catalog.shards):
        raise InputError(
            "the filter gives other rows than it was asked about; put sum(), count() and unnest() into a subquery over pool"
        )
    return mask


def _is_there(catalog: Catalog, label: str) -> bool:
    if label not in catalog.label_columns:
        raise MissingColumnsError(f"{label} has no annotation yet; run\n  {catalog.annotate_command(label)}")
    return True
