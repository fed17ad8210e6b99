"""Which token comes next: the likeliest, or one drawn for each row from numbers of its own, so that no row's answer depends on another's.

Stands among the logits processors of `transformers`, which then takes the likeliest of what is left: the one token chosen here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.models.engine import Sampling

if TYPE_CHECKING:
    import torch


class TokenChoice:
    """Chooses a token for every row and step, and remembers how likely each was to the model, before temperature and cuts."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], num_steps: int) -> None:
        self._sampling = sampling
        self._numbers = np.stack([np.random.default_rng(seed).random(num_steps) for seed in seeds])
        self._step = 0
        self._log_probabilities: list[torch.Tensor] = []
        self._by_row: list[list[float]] = []

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":  # noqa: ARG002
        """Return scores that leave one token of each row: (rows, vocabulary) float."""
        import torch

        logits = scores.float()
        if self._sampling.is_drawn:
            chosen = self._draw(logits, self._numbers[:, self._step])
        else:
            chosen = logits.argmax(dim=-1, keepdim=True)
        if self._sampling.log_probabilities:
            self._log_probabilities.append(torch.log_softmax(logits, dim=-1).gather(1, chosen)[:, 0])
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def mean_log_probability(self, row: int, num_tokens: int) -> float | None:
        """Return the mean over a row's first tokens; None where it has none or nobody asked."""
        import torch

        if num_tokens == 0 or not self._sampling.log_probabilities:
            return None
        if len(self._by_row) == 0:  # fetched once: a number at a time is a wait for the device at a time
            self._by_row = torch.stack(self._log_probabilities, dim=1).tolist()
        steps = self._by_row[row][:num_tokens]
        return sum(steps) / len(steps)

    def _draw(self, logits: "torch.Tensor", numbers: np.ndarray) -> "torch.Tensor":
        import torch

        probabilities = torch.softmax(logits / self._sampling.temperature, dim=-1)
        order = None
        if self._sampling.top_k or self._sampling.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
            if self._sampling.top_k:
                probabilities[:, self._sampling.top_k :] = 0
                probabilities /= probabilities.sum(dim=-1, keepdim=True)
            # The token that crosses the line still belongs to the nucleus.
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = (
                probabilities.masked_fill(before >= self._sampling.top_p, 0) if order is not None else probabilities
            )
        cumulative = probabilities.double().cumsum(dim=-1)
        marks = torch.from_numpy(numbers).to(cumulative.device)[:, None] * cumulative[:, -1:]
        # To the right of equals: a token of probability 0 is never met.
        chosen = torch.searchsorted(cumulative, marks, right=True).clamp_(max=logits.shape[1] - 1)
        return chosen if order is None else order.gather(1, chosen)


class StopAtText:
    """Ends a row once its answer holds one of some texts, however they fall into tokens; stands among the stopping criteria."""

    def __init__(self, stops: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self._stops = tuple(stops)
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        # A token is a character or more, but for pieces of a character.
        self._window = 4 * max(len(stop) for stop in stops)

    def __call__(self, input_ids: "torch.Tensor", scores: object, **kwargs: object) -> "torch.Tensor":  # noqa: ARG002
        """Return which rows have ended: (rows,) bool."""
        import torch

        answers = input_ids[:, self._prompt_length :][:, -self._window :].tolist()
        texts = [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        ended = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
