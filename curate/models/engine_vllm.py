"""vLLM on a Ray cluster, through Ray Data's language model stage: a replica for each GPU, fed by all shards at once.

vLLM itself groups requests as they come, in half precision, so that an answer may change in its last bits with its company; the cache
keeps the first. For answers that must not, take `transformers` on float32, or a server of one's own that promises it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from curate.executor_llm import RowStream, count_gpus, vllm_processor
from curate.fingerprint import model_identity
from curate.models.chat_protocol import chat_messages, one_line
from curate.models.engine import LENGTH, STOP, Answer, Engine, Request, Sampling, failed

_ERROR = "__inference_error__"


class VllmEngine(Engine):
    """One model on all GPUs of the cluster that this process belongs to; `open_stage` stands for Ray Data's stage in a test."""

    def __init__(
        self,
        model: str,
        revision: str = "",
        *,
        num_at_once: int = 32,
        open_stage: Callable[..., Callable[[Any], Any]] = vllm_processor,
    ) -> None:
        self._identity = {"engine": "vllm", **model_identity(model, revision)}
        stage = open_stage(model, engine_settings(revision), num_at_once=num_at_once, num_replicas=max(1, count_gpus()))
        self._stream = RowStream(stage)

    def identity(self) -> Mapping[str, Any]:
        """Return the weights' digest or the pinned commit."""
        return self._identity

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """Return an answer for every request, in order."""
        answers = dict(pair for together in self.stream(requests, sampling) for pair in together)
        return [answers[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Answer]]]:
        """Yield answers as they come."""
        futures = self._stream.submit([request_row(request, sampling) for request in requests])
        numbers = {future: number for number, future in enumerate(futures)}
        left = set(futures)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            yield [(numbers[future], read_row(future.result(), sampling)) for future in done]

    def close(self) -> None:
        """End the stage."""
        self._stream.close()


def engine_settings(revision: str) -> dict[str, Any]:
    """Return what vLLM is started with."""
    pinned = {"revision": revision, "tokenizer_revision": revision} if revision else {}
    # How a model's makers like it drawn must not change answers; vLLM would read it from their generation configuration.
    return {"generation_config": "vllm", "limit_mm_per_prompt": {"image": 1}, **pinned}


def request_row(request: Request, sampling: Sampling) -> dict[str, Any]:
    """Return a request as the stage takes it: messages, and vLLM's names for how to sample."""
    settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.is_drawn:
        settings |= {"seed": request.seed, "top_p": sampling.top_p, "top_k": sampling.top_k or -1}
    if sampling.stop:
        settings["stop"] = list(sampling.stop)
    if sampling.log_probabilities:
        settings["logprobs"] = 0  # of the chosen token only
    return {"messages": chat_messages(request), "sampling_params": settings}


def read_row(row: Mapping[str, Any], sampling: Sampling) -> Answer:
    """Return the answer in a row of the stage."""
    if row.get(_ERROR):
        return failed(one_line(str(row[_ERROR])))
    num_new = int(row["num_generated_tokens"])
    return Answer(
        text=str(row["generated_text"]).strip(),
        # The stage does not say how an answer ended.
        finish_reason=LENGTH if num_new >= sampling.max_new_tokens else STOP,
        log_probability=_mean_log_probability(row.get("logprobs"), row.get("generated_tokens")),
        num_prompt_tokens=int(row["num_input_tokens"]),
        num_new_tokens=num_new,
    )


def _mean_log_probability(steps: Any, tokens: Any) -> float | None:
    """Return the mean over the chosen tokens; a step is a mapping, or Arrow's list of pairs, from token to what is known of it."""
    if steps is None or tokens is None or not len(tokens):
        return None
    values = []
    for step, token in zip(steps, tokens, strict=True):
        known = {int(key): value for key, value in (step.items() if isinstance(step, Mapping) else step) if value}
        if int(token) not in known:
            return None
        values.append(float(known[int(token)]["logprob"]))
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None
