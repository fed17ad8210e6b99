"""Parts of a table on their way through a model: on a GPU the next is copied there while one is computed, on a CPU there is one part.

The host waits for a table's features at its end, and before for the part but two before the one that it brings next: that bounds the
memory of both sides.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import torch

# Tokens of one part, a picture's patches or a text's: they fill a large GPU, and a large model's activations for them fit a small one.
PART_TOKENS = 32_768
# Parts computed or waiting on a GPU.
_PARTS_AHEAD = 2
# Tables worked on at once: while one's features become columns, the other's are computed.
TABLES_AT_ONCE = 2

Inputs = Mapping[str, Any]


def has_gpu() -> bool:
    """Tell whether models run on a GPU in this process."""
    import torch

    return torch.cuda.is_available()


class Feeder:
    """Brings arrays to a device and features back; bears calls from several threads, two of which are served at a time."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self.is_gpu = device.type == "cuda"
        self._device = device
        self._copies = torch.cuda.Stream() if self.is_gpu else None  # type: ignore[no-untyped-call]
        self._turns = threading.Semaphore(TABLES_AT_ONCE)
        # Starting a model's kernels is Python's work, in which two threads only hinder each other; bringing a part is copying, which is not.
        self._starting = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: "torch.dtype") -> "torch.Tensor":
        """Return an array of the host that the device copies from without the host's help."""
        import torch

        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._copies is not None)

    def send(self, array: "torch.Tensor") -> "torch.Tensor":
        """Return an array on the device, on its way there: `run` lets what is computed from it wait."""
        import torch

        if self._copies is None:
            return array
        # Pinned memory is used again only when copies from it are done: its allocator watches over that.
        pinned = array if array.is_pinned() else array.pin_memory()
        with torch.cuda.stream(self._copies):
            sent = pinned.to(self._device, non_blocking=True)
        sent.record_stream(torch.cuda.current_stream())
        return sent

    def run(self, parts: Iterable[Inputs], compute: Callable[..., "torch.Tensor"]) -> np.ndarray:
        """Return what `compute` makes of the inputs of each part, one below the other; a part is drawn while the one before is computed."""
        import torch

        features: list[torch.Tensor] = []
        running: deque[torch.cuda.Event] = deque()
        with self._turns, torch.inference_mode():
            for inputs in parts:
                features.append(self._start(inputs, compute, running))
                if len(running) > _PARTS_AHEAD:
                    running.popleft().synchronize()
            for event in running:
                event.synchronize()
        return np.concatenate([part.numpy() for part in features])

    def _start(
        self, inputs: Inputs, compute: Callable[..., "torch.Tensor"], running: "deque[torch.cuda.Event]"
    ) -> "torch.Tensor":
        """Start a part's computation, and its features' way back at once: behind another table's part they would be late."""
        import torch

        if self._copies is None:
            return compute(**inputs)
        arrived = self._copies.record_event()
        with self._starting:
            stream = torch.cuda.current_stream()
            stream.wait_event(arrived)
            features = compute(**inputs).to("cpu", non_blocking=True)
            running.append(stream.record_event())
        return features


def cut_pictures(num_rows: int, num_tokens: int, *, is_gpu: bool) -> Iterator[slice]:
    """Yield the rows of each part, for pictures of `num_tokens` tokens each."""
    # A power of two: what kernels divide best.
    size = 1 << max(PART_TOKENS // num_tokens, 1).bit_length() - 1 if is_gpu else num_rows
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def cut_texts(lengths: np.ndarray, *, is_gpu: bool) -> Iterator[np.ndarray]:
    """Yield the rows of each part: on a GPU those of like length together, so that little is padding.

    The longest come first: what does not fit in memory shows at once.
    """
    if not is_gpu:
        yield np.arange(len(lengths))
        return
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(PART_TOKENS // max(int(lengths[order[start]]), 1), 1)
        yield order[start : start + size]
        start += size


def flatten_ids(ids: Sequence[Sequence[int]] | pa.ListArray | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of all texts in a row, and where each text begins and the last one ends (texts + 1)."""
    if isinstance(ids, pa.ChunkedArray):
        rows = ids.combine_chunks()
    else:
        rows = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.list_(pa.int32()))
    return rows.values.to_numpy(), rows.offsets.to_numpy().astype(np.int64)


def pad_ids(tokens: np.ndarray, starts: np.ndarray, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return some texts' tokens, filled up behind to the longest of them, and which are theirs: (texts, longest) int64 each."""
    lengths = starts[rows + 1] - starts[rows]
    places = np.arange(lengths.max(initial=0))
    is_own = places < lengths[:, None]
    padded = np.full(is_own.shape, pad_id, dtype=np.int64)
    padded[is_own] = tokens[(starts[rows][:, None] + places)[is_own]]
    return padded, is_own.astype(np.int64)
