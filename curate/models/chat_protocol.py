"""The JSON of OpenAI's chat completions: a request as a body, a body as an answer. What a server says is not trusted to be well formed."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from curate.models.engine import ERROR, STOP, Answer, Request, Sampling

# Characters per token, and tokens per picture, where a server does not say how many it read: for budgets, not for columns.
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 800
_TOKENS_PER_MESSAGE = 8
_REASON_LENGTH = 300
_PNG_SIGNATURE = b"\x89PNG"


class MalformedAnswerError(ValueError):
    """A body that is not the JSON of a completion; asking again may help."""


def request_body(request: Request, sampling: Sampling, model: str, *, wants_log_probabilities: bool) -> bytes:
    """Return the body that asks for one answer; the picture goes with the last message of the user."""
    body: dict[str, Any] = {
        "model": model,
        "messages": chat_messages(request),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.is_drawn:
        body["seed"] = request.seed
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # not OpenAI's own, but vLLM's, SGLang's and llama.cpp's
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if wants_log_probabilities:
        body["logprobs"] = True
    return json.dumps(body).encode()


def chat_messages(request: Request) -> list[dict[str, Any]]:
    """Return the messages as OpenAI writes them; the picture, as a data URL, goes with the last one of the user."""
    messages: list[dict[str, Any]] = [{"role": m.role, "content": m.text} for m in request.messages]
    if not request.image:
        return messages
    users = [number for number, message in enumerate(request.messages) if message.role == "user"]
    if not users:
        raise ValueError("a request with a picture needs a message of the user's")
    kind = "png" if request.image.startswith(_PNG_SIGNATURE) else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(request.image).decode()}"
    asked = messages[users[-1]]
    asked["content"] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": asked["content"]}]
    return messages


def read_answer(body: bytes, request: Request) -> Answer:
    """Return the answer in a completion's body; raises MalformedAnswerError where it is none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"the answer is no JSON: {one_line(body[:80])!r}") from error
    choice = _first_choice(content)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedAnswerError("the answer's choice has no message")
    reason = choice.get("finish_reason") or STOP
    text = _text(message)
    num_prompt, num_new = _usage(content, request, text or "")
    if text is None or reason == "content_filter":
        return Answer(
            text=None,
            finish_reason=ERROR,
            num_prompt_tokens=num_prompt,
            num_new_tokens=num_new,
            error=_why_empty(message, one_line(str(reason))),
        )
    return Answer(
        text=text,
        finish_reason=one_line(str(reason)),
        log_probability=_mean_log_probability(choice.get("logprobs")),
        num_prompt_tokens=num_prompt,
        num_new_tokens=num_new,
    )


def read_error(body: bytes) -> tuple[str, str]:
    """Return (message, code) of an error's body: a server's own words on one line, at most 300 characters."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return one_line(body), ""
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return one_line(str(error)), ""
    message = error.get("message") or error.get("detail") or error
    return one_line(str(message)), one_line(str(error.get("code") or error.get("type") or ""))


def estimate_prompt_tokens(request: Request) -> int:
    """Return about how many tokens a request's messages and picture are."""
    num_characters = sum(len(message.text) for message in request.messages)
    tokens = -(-num_characters // _CHARACTERS_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(request.messages)
    return tokens + (_TOKENS_PER_IMAGE if request.image else 0)


def one_line(text: str | bytes) -> str:
    """Return text without line breaks and control characters, at most 300 characters of it."""
    cut = text[: 4 * _REASON_LENGTH]
    decoded = cut.decode("utf-8", "replace") if isinstance(cut, bytes) else cut
    return "".join(c if c.isprintable() else " " for c in " ".join(decoded.split()))[:_REASON_LENGTH]


def _first_choice(content: object) -> Mapping[str, Any]:
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedAnswerError("the answer has no choices")
    choice: Mapping[str, Any] = choices[0]
    return choice


def _text(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if not isinstance(content, str):
        return None
    # Escapes of half a character pair would break every writer of UTF-8 behind us.
    return content.encode("utf-8", "replace").decode("utf-8")


def _why_empty(message: Mapping[str, Any], reason: str) -> str:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return f"the model refused: {one_line(refusal)}"
    if reason == "content_filter":
        return "the server's filter held the answer back"
    if message.get("content", 0) is not None:
        raise MalformedAnswerError("the answer's message has no text")
    return f"the answer is empty (finish_reason {reason})"


def _usage(content: Mapping[str, Any], request: Request, text: str) -> tuple[int, int]:
    usage = content.get("usage")
    stated = usage if isinstance(usage, dict) else {}
    return (
        _count(stated.get("prompt_tokens"), estimate_prompt_tokens(request)),
        _count(stated.get("completion_tokens"), -(-len(text) // _CHARACTERS_PER_TOKEN)),
    )


def _count(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else otherwise


def _mean_log_probability(logprobs: object) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list):
        return None
    values = [token.get("logprob") for token in tokens if isinstance(token, dict)]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if (
        not numbers
        or len(numbers) < len(tokens)
        or not all(math.isfinite(number) and number <= 0 for number in numbers)
    ):
        return None
    return sum(numbers) / len(numbers)
