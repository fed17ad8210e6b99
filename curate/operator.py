"""The one idea of annotation: an operator adds columns to every sample, and never drops or reorders rows.

A new operator is one file in `curate/operators/` whose name is the operator's, holding one subclass of `ShardOperator` or
`PoolOperator`, and one test that calls `tests.contract.check_operator`.

    @dataclass(frozen=True, kw_only=True)
    class CaptionWords(ShardOperator):
        "Number of words of the caption (0 and up); 2 us per sample."

        name = "caption_words"
        version = 1
        reads = ("alt_text",)
        writes = pa.schema([("caption_num_words", pa.int32())])

        def load(self) -> Annotate:
            def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
                return {"caption_num_words": [len(text.split()) for text in batch["alt_text"].to_pylist()]}

            return annotate
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from schemas.annotation import ERROR_COLUMN
from schemas.errors import ContractError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

Annotate = Callable[[pa.Table], Mapping[str, Sequence[Any]]]
Prepare = Callable[[pa.Table], pa.Table]

# The input column that means the picture: upright RGB pixels, rows of the height by width by 3 bytes. See `curate.images.pixels`.
IMAGE_COLUMN = "image"
IMAGE_TYPE = pa.struct([("rgb", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])
# The picture in grey, for those who need no colours: rows of the height by width bytes, 0.299 R + 0.587 G + 0.114 B. See `curate.luma.planes`.
IMAGE_LUMA_COLUMN = "image_luma"
IMAGE_LUMA_TYPE = pa.struct([("luma", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])
# The stored file's bytes, as they lie in the tar.
IMAGE_FILE_COLUMN = "image_file"
# The length of that file, for those who need no more of it.
IMAGE_FILE_BYTES_COLUMN = "image_file_bytes"
# Reserved for every operator: the row's message where it failed.
RESERVED_WRITES = frozenset({"uid", ERROR_COLUMN, "shard", "row"})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one actor of an operator takes.

    Resources()                      # runs inside the process that decodes
    Resources(model=True)            # has a model to load: runs in an actor of its own kind, a GPU each where the cluster has them
    Resources(model=True, gpus=0.5)  # two such actors share a GPU
    Resources(model=True, gpus=0, concurrent_batches=8)  # waits for a program elsewhere: one actor in all, eight batches at a time
    """

    cpus: float = 1.0
    gpus: float = 1.0  # per actor; counts only where `model` is true and the cluster has GPUs
    batch_size: int = 256  # samples per call of annotate
    # The same where a GPU runs the model, from two threads at once, and of several chunks; the function must bear that, and should not
    # depend on its batches but for rounding. 0: `batch_size`, as everywhere.
    gpu_batch_size: int = 0
    model: bool = False
    # Calls of annotate at once, from one shard or several: so that what answers them never waits at a batch's end. Above 1 the function
    # must bear calls from several threads.
    concurrent_batches: int = 1


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """Adds columns to every sample; a frozen dataclass whose fields are its parameters."""

    name: ClassVar[str]
    version: ClassVar[int]
    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[pa.Schema]
    # Inputs that may be null; a row with any other input missing becomes nulls and the message "no <input>".
    nullable: ClassVar[tuple[str, ...]] = ()

    bind: Mapping[str, str] = field(default_factory=dict)  # renames inputs: {"alt_text": "recap.recaption"}
    label: str = ""  # its name in SQL; empty means `name`; not part of the fingerprint

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            return
        for attribute in ("version", "reads", "writes"):
            if not hasattr(cls, attribute):
                raise ContractError(f"{cls.__name__} must declare {attribute!r}; see curate/operator.py for an example")
        clash = RESERVED_WRITES.intersection(cls.writes.names)
        if clash:
            raise ContractError(f"{cls.name} may not write {sorted(clash)}: every annotation has those columns already")
        module = cls.__module__.rpartition(".")[2]
        if cls.__module__.startswith("curate.operators.") and module != cls.name:
            raise ContractError(f"operator {cls.name!r} must live in curate/operators/{cls.name}.py, not {module}.py")

    @property
    def sql_name(self) -> str:
        """The label, or the operator's name where none was given."""
        return self.label or self.name

    def requires(self) -> tuple["Operator", ...]:
        """Return the operators whose columns this one reads; they are scheduled with it and committed on their own."""
        return ()

    def placed(self, pool: str) -> "Operator":  # noqa: ARG002  (most need no place)
        """Return the operator as it works in the pool at the local folder `pool` (empty: a remote one); its identity stays the same."""
        return self

    def identity(self) -> Mapping[str, Any]:
        """Return what the fingerprint covers: the parameters, with a model's revision or weights digest in place of its path."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("bind", "label")}


@dataclass(frozen=True, kw_only=True)
class ShardOperator(Operator):
    """One shard in, one annotation file out."""

    resources: ClassVar[Resources] = Resources()

    def prepare(self) -> Prepare | None:
        """Return the CPU half of a model operator (input table -> table given to annotate), which runs ahead of it in the decoding process."""
        return None

    @abstractmethod
    def load(self) -> Annotate:
        """Build whatever the operator needs, once per process, and return the function that annotates a batch.

        The function takes a table with the columns `reads` (or what `prepare` made of them) and returns the columns `writes`, each as
        long as the batch, plus optionally `error` with a message for every row that failed. It must not depend on the batch's size.
        """


@dataclass(frozen=True, kw_only=True)
class PoolOperator(Operator):
    """Needs every row: duplicates, clusters, balancing."""

    @abstractmethod
    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:
        """Yield tables whose rows, put together, are the pool's rows in pool order (`ORDER BY shard, row`), with `uid` and the columns `writes`.

        `pool` has the columns shard, row, uid and `reads`. It may be larger than memory: work in SQL, or stream. `work` has scratch space
        on disk, a budget of memory, and `map` to share the work among Ray's workers. What is yielded must not depend on their number.
        """


def discover() -> dict[str, type[Operator]]:
    """Return every operator by name: one module of `curate.operators` each. No model library is imported."""
    package = importlib.import_module("curate.operators")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))
    return {name: find_operator(importlib.import_module(f"curate.operators.{name}")) for name in names}


def find_operator(module: Any) -> type[Operator]:
    """Return the one operator class that a module defines."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Operator)
        and value.__module__ == module.__name__
        and hasattr(value, "name")
    ]
    if len(found) != 1:
        raise ContractError(
            f"{module.__name__} must define exactly one operator, found {[value.__name__ for value in found]}"
        )
    return found[0]
