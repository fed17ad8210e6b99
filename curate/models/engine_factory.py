"""Opens the engine that an operator names: one for each model and server in a process, shared by operators and threads."""

import threading
from typing import TYPE_CHECKING

from curate.models.answer_cache import AnswerCache, CachedEngine, engine_digest
from curate.models.budget import Budget, Limits
from curate.models.engine import Engine

if TYPE_CHECKING:
    from curate.models.generation import GenerationOperator

NO_CACHE = "none"

_engines: dict[tuple[object, ...], Engine] = {}
_lock = threading.Lock()


def open_engine(operator: "GenerationOperator") -> Engine:
    """Return the operator's engine, made now or before."""
    key = (
        *(operator.engine, operator.model, operator.revision, operator.url, operator.cache, operator.key_variable),
        *(operator.concurrency, operator.request_seconds, _limits(operator)),
    )
    with _lock:
        if key not in _engines:
            _engines[key] = _make(operator)
        return _engines[key]


def _make(operator: "GenerationOperator") -> Engine:
    cache = AnswerCache(operator.cache) if operator.cache not in ("", NO_CACHE) else None
    if operator.engine == "openai":
        from curate.models.engine_openai import Endpoint, OpenAiEngine

        spent = cache.spent(engine_digest(operator.engine_identity())) if cache else (0, 0)
        engine: Engine = OpenAiEngine(
            Endpoint(
                url=operator.url,
                model=operator.model,
                revision=operator.revision,
                key_variable=operator.key_variable,
                concurrency=operator.concurrency,
                request_seconds=operator.request_seconds,
            ),
            Budget(_limits(operator), spent),
        )
    elif operator.engine == "vllm":
        from curate.models.engine_vllm import VllmEngine

        engine = VllmEngine(operator.model, operator.revision, num_at_once=operator.concurrency)
    else:
        from curate.models.engine_transformers import TransformersEngine

        engine = TransformersEngine(operator.model, operator.revision)
    return CachedEngine(engine, cache) if cache else engine


def _limits(operator: "GenerationOperator") -> Limits:
    return Limits(
        tokens=operator.budget_tokens,
        money=operator.budget_money,
        price_prompt=operator.price_prompt,
        price_new=operator.price_new,
    )
