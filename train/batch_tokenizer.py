"""Turns a batch's texts into token ids: the ids of the tokenizer's own call, several times faster.

A `transformers` tokenizer takes longer to wrap what it found for each text than to find it, and holds Python's lock while it does: at the
speed of a GPU the training waits for that. Here its Rust half is called directly, for large batches from several threads, and numpy pads.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from train.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_THREADS = 8
_TEXTS_PER_THREAD = 128
# Where a tokenizer does something of its own in Python, it shows in one of these.
_PROBES = (
    *(
        "",
        " ",
        "a",
        "A Photo of a CAT, 3 dogs & 12.50!",
        "two\n words\t",
        "na\u00efve caf\u00e9 \u5317\u4eac \U0001f642",
        "e\u0301",
    ),
    *("<|endoftext|> </s> [SEP] <pad>", "don't 'quote' isn\u2019t", "long " * 600, "x" * 700),
)


class BatchTokenizer:
    """Tokenizes for one context length; `trim` pads to the longest text of a batch instead, as `tokenize` does."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", context_length: int, *, trim: bool) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._trim = trim
        self._threads: ThreadPoolExecutor | None = None
        self._backend = _copy_backend(tokenizer, context_length)
        if self._backend is not None and not self._agrees():
            self._backend = None

    @property
    def is_direct(self) -> bool:
        """Whether the Rust half alone gives this tokenizer's ids."""
        return self._backend is not None

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and attention mask (n, length), int64; a long text is cut and keeps its end mark."""
        if self._backend is None:
            return tokenize(self.tokenizer, texts, self.context_length, trim=self._trim)
        return self._pad(self._encode(list(texts)))

    def _agrees(self) -> bool:
        expected = tokenize(self.tokenizer, _PROBES, self.context_length, trim=self._trim)
        found = self._pad(self._encode(list(_PROBES)))
        return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        num_parts = min(len(texts) // _TEXTS_PER_THREAD, _MAX_THREADS, len(os.sched_getaffinity(0)))
        if num_parts < 2:
            return self._encode_part(texts)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MAX_THREADS, "winnow-tokenize")
        bounds = [len(texts) * part // num_parts for part in range(num_parts + 1)]
        parts = [texts[start:stop] for start, stop in pairwise(bounds)]
        return list(chain.from_iterable(self._threads.map(self._encode_part, parts)))

    def _encode_part(self, texts: list[str]) -> list[list[int]]:
        assert self._backend is not None
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts)]

    def _pad(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        width = int(lengths.max(initial=0)) if self._trim else self.context_length
        is_own = np.arange(width) < lengths[:, None]
        padded = np.full(is_own.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        padded[is_own] = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
        return torch.from_numpy(padded), torch.from_numpy(is_own.astype(np.int64))


def _copy_backend(tokenizer: "PreTrainedTokenizerBase", context_length: int) -> Any:
    """Return a copy of a tokenizer's Rust half that cuts and does not pad, or None where there is none to use."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.pad_token_id is None or not hasattr(backend, "encode_batch_fast"):
        return None
    # A copy, because cutting is a state of it, which every call of the tokenizer itself sets anew.
    copied = Tokenizer.from_str(backend.to_str())
    copied.enable_truncation(context_length)
    copied.no_padding()
    return copied
