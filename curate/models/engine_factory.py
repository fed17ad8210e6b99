"""Opens the engine that an operator names: one for each model and server in a process, shared by operators and threads."""

import threading
from typing import TYPE_CHECKING

from curate.models.engine import Engine
from schemas.errors import InputError

if TYPE_CHECKING:
    from curate.models.generation import GenerationOperator

_engines: dict[tuple[object, ...], Engine] = {}
_lock = threading.Lock()


def open_engine(operator: "GenerationOperator") -> Engine:
    """Return the operator's engine, made now or before."""
    key = (operator.engine, operator.model, operator.revision, operator.url, operator.cache, operator.key_variable)
    with _lock:
        if key not in _engines:
            _engines[key] = _make(operator)
        return _engines[key]


def _make(operator: "GenerationOperator") -> Engine:
    raise InputError(f"engine {operator.engine!r} is unknown")
