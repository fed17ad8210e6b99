"""What asks a model for text: messages with at most one picture in, answers out, whichever program runs the model.

    engine.generate([Request(messages=(Message(role="user", text="Describe the picture."),), image=data)], Sampling())

An answer depends on its request and on the sampling, never on the requests beside it: not on their number, order or length.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Why an answer ended: of itself or at a stop text, at `max_new_tokens`, or not at all.
STOP, LENGTH, ERROR = "stop", "length", "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Everything that changes an answer but its messages.

    Sampling()                                    # the likeliest token at every step
    Sampling(temperature=0.9, top_p=0.9)          # drawn, with the seed of each request
    Sampling(num_beams=4, max_new_tokens=20)      # beam search; the `transformers` engine only
    """

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    num_beams: int = 1
    max_new_tokens: int = 77
    stop: tuple[str, ...] = ()
    log_probabilities: bool = False

    @property
    def is_drawn(self) -> bool:
        """Whether chance, and so the request's seed, decides."""
        return self.temperature > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question: its messages, the encoded picture they speak of, and the seed that decides where something is drawn."""

    messages: tuple[Message, ...]
    image: bytes = b""  # JPEG or PNG, already reduced to the size the engine wants; empty: none
    seed: int = 0
    sample: str = ""  # uid of the sample that is asked about: caches note it, and it changes no answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of a request; `text` is None where it failed, and `error` then says why."""

    text: str | None
    finish_reason: str  # STOP, LENGTH, ERROR, or what else the server said
    log_probability: float | None = None  # mean per new token, natural logarithm; None where the engine does not say
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    is_cached: bool = False
    error: str = ""


class Engine(ABC):
    """Runs a model, or asks a program that does; may be called from several threads at once."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return what decides answers besides requests and sampling: the kind of engine, the model, its revision or weights digest."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """Return an answer for every request, in order; what is wrong with one request is in its answer's `error`.

        Raises InputError where every request would fail alike (a wrong key, a budget that is used up).
        """

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Answer]]]:
        """Yield (number of the request, its answer), in any order, those that came together in one list.

        They are kept together or not at all: what a model computed side by side is not mixed with other company after a kill.
        """
        yield list(enumerate(self.generate(requests, sampling)))

    def close(self) -> None:  # noqa: B027  (most have nothing to let go of)
        """Let go of connections, processes and memory."""


def failed(error: str) -> Answer:
    """Return the answer of a request that failed."""
    return Answer(text=None, finish_reason=ERROR, error=error)
