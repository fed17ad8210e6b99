"""Turns a batch's texts into token ids as fast as a GPU asks for them: ids straight from the Rust half, in threads, padded by numpy."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from schemas.direct_tokenizer import find_direct
from train.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_THREADS = 8
_TEXTS_PER_THREAD = 128


class BatchTokenizer:
    """Tokenizes for one context length; `trim` pads to the longest text of a batch instead, as `tokenize` does."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", context_length: int, *, trim: bool) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._trim = trim
        self._threads: ThreadPoolExecutor | None = None
        is_plain = tokenizer.padding_side == "right" and tokenizer.pad_token_id is not None
        self._direct = find_direct(tokenizer, context_length) if is_plain else None

    @property
    def is_direct(self) -> bool:
        """Whether the tokenizer's own call is gone around."""
        return self._direct is not None

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and attention mask (n, length), int64; a long text is cut and keeps its end mark."""
        if self._direct is None:
            return tokenize(self.tokenizer, texts, self.context_length, trim=self._trim)
        num_parts = min(len(texts) // _TEXTS_PER_THREAD, _MAX_THREADS, len(os.sched_getaffinity(0)))
        if num_parts < 2:
            return self._pad(self._direct(texts))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MAX_THREADS, "winnow-tokenize")
        bounds = [len(texts) * part // num_parts for part in range(num_parts + 1)]
        parts = [texts[start:stop] for start, stop in pairwise(bounds)]
        return self._pad(list(chain.from_iterable(self._threads.map(self._direct, parts))))

    def _pad(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        width = int(lengths.max(initial=0)) if self._trim else self.context_length
        is_own = np.arange(width) < lengths[:, None]
        padded = np.full(is_own.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        padded[is_own] = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
        return torch.from_numpy(padded), torch.from_numpy(is_own.astype(np.int64))
