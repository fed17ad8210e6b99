"""Ray Data's language model stage, kept running: the second half of the door to Ray that `curate/executor.py` is.

A model takes minutes to load, and Ray Data loads it once for each dataset. So there is one dataset, whose rows come from a queue for as long
as anybody asks, and its rows go back to who asked by their number.
"""

import importlib.util
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from schemas.errors import InputError

NUMBER = "request_number"
_CLOSE_SECONDS = 10.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXPLANATION_LENGTH = 1000

Row = dict[str, Any]


class RowStream:
    """Rows through a function from dataset to dataset; may be used from several threads. Each row must come out once, its number on it."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        from ray.util.queue import Queue

        # No CPUs of its own: it only holds rows, and must find room on a cluster that is full.
        self._queue = Queue(actor_options={"num_cpus": 0})
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Row]] = {}
        self._num_rows = 0
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._drain, args=(transform,), name="llm-stage", daemon=True)
        self._thread.start()

    def submit(self, rows: list[Row]) -> "list[Future[Row]]":
        """Send rows on their way; a future holds the row as it came out, or what broke the dataset."""
        futures: list[Future[Row]] = [Future() for _ in rows]
        with self._lock:
            if self._broken is not None:
                raise InputError(_explain(self._broken)) from self._broken
            numbered = [{**row, NUMBER: self._num_rows + place} for place, row in enumerate(rows)]
            self._waiting |= {row[NUMBER]: future for row, future in zip(numbered, futures, strict=True)}
            self._num_rows += len(rows)
        for row in numbered:
            self._queue.put(row)
        return futures

    def close(self) -> None:
        """End the dataset once what is on its way has come out."""
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        self._queue.shutdown(force=True)

    def _drain(self, transform: Callable[[Any], Any]) -> None:
        from ray.data import DataContext, read_datasource

        # A block is handed on when it is this large: after every row.
        DataContext.get_current().target_max_block_size = 1
        DataContext.get_current().enable_progress_bars = False
        try:
            dataset = transform(read_datasource(_make_source(self._queue), override_num_blocks=1))
            # Nothing is fetched ahead: the last row of the moment would wait for one that nobody may ever ask for.
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    with self._lock:
                        future = self._waiting.pop(int(row[NUMBER]))
                    future.set_result(row)
        except Exception as error:  # noqa: BLE001  (handed to everybody who waits)
            self._break(error)
        else:
            self._break(RuntimeError("the dataset has ended"))

    def _break(self, error: Exception) -> None:
        with self._lock:
            self._broken = error
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(InputError(_explain(error)))


def vllm_processor(
    model: str, engine_settings: Mapping[str, Any], *, num_at_once: int, num_replicas: int
) -> Callable[[Any], Any]:
    """Return Ray Data's vLLM stage as a function from dataset to dataset: messages with pictures in, texts out.

    Raises InputError with the command to install where vLLM is missing.
    """
    config = vllm_config(model, engine_settings, num_at_once=num_at_once, num_replicas=num_replicas)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "engine=vllm needs vLLM on every machine of the cluster: pip install 'winnow[vllm]'; or start a server with "
            "`vllm serve MODEL` and name it with engine=openai,url=http://HOST:8000/v1"
        )
    from ray.data.llm import build_processor

    processor: Callable[[Any], Any] = build_processor(config)
    return processor


def vllm_config(model: str, engine_settings: Mapping[str, Any], *, num_at_once: int, num_replicas: int) -> Any:
    """Return the settings of Ray Data's vLLM stage."""
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=dict(engine_settings),
        # A batch waits until it is full: of one row, so that the last rows of the moment do not wait.
        batch_size=1,
        max_concurrent_batches=num_at_once,
        concurrency=(1, num_replicas),
        should_continue_on_error=True,
        prepare_multimodal_stage={"enabled": True},
        chat_template_stage={"enabled": True},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )


def count_gpus() -> int:
    """Return the GPUs of the cluster this process belongs to."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _explain(error: Exception) -> str:
    # Ray's text is a traceback in colours.
    text = " ".join(_COLOUR.sub("", str(error)).split())[:_EXPLANATION_LENGTH]
    return f"the language model stage on the Ray cluster ended: {type(error).__name__}: {text}"


def _make_source(queue: Any) -> Any:
    """Return a datasource whose one task yields rows as they are put into a queue, until it finds None."""
    import pyarrow as pa
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[pa.Table]:
        while (row := queue.get()) is not None:
            yield pa.Table.from_pylist([row])

    class QueueSource(Datasource):  # type: ignore[misc]  # Ray ships no types
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, metadata)]

    return QueueSource()
