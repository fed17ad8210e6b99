"""Any server that speaks OpenAI's chat completions over HTTP: vLLM, SGLang, llama.cpp, hosted ones.

Requests run at once up to `concurrency`, in the order they came, whatever batch they belong to. What may pass (429, 5xx, time-outs, broken
connections and bodies) is asked again with growing pauses; what will not is the request's error, or the end where every request would
meet it. The key comes from the environment of the process that asks and goes nowhere but into the header.
"""

import asyncio
import logging
import os
import queue
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from curate.models.budget import Budget
from curate.models.chat_protocol import (
    MalformedAnswerError,
    estimate_prompt_tokens,
    one_line,
    read_answer,
    read_error,
    request_body,
)
from curate.models.engine import Answer, Engine, Request, Sampling, failed
from schemas.errors import InputError

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

# 529 is what overloaded servers behind some proxies say.
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_POLL_SECONDS = 0.02
_MAX_PAUSE_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
# So many requests in a row that were given up, with no answer in between: the server is gone, and the rows are not to blame.
_MAX_GIVEN_UP = 5


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and how to treat it.

    Endpoint(url="http://127.0.0.1:8000/v1", model="qwen2-vl")
    Endpoint(url="https://api.example.org/v1", model="large", key_variable="EXAMPLE_KEY", concurrency=8)
    """

    url: str
    model: str
    revision: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 32
    request_seconds: float = 600.0  # for one request with all its repetitions
    max_tries: int = 8
    first_pause_seconds: float = 0.5  # doubled every time, up to half a minute
    max_answer_bytes: int = 4 << 20


class _StoppedError(Exception):
    """A request that is not sent because the engine has stopped."""


class _TemporaryError(Exception):
    """What may pass; `pause` is what the server asked for, in seconds."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


class _PermanentError(Exception):
    """What would be the same again, for this request only."""


class OpenAiEngine(Engine):
    """Asks one server; all threads of a process share its connections and its limits."""

    def __init__(self, endpoint: Endpoint, budget: Budget) -> None:
        self._endpoint = endpoint
        self._budget = budget
        self._url = endpoint.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = os.environ.get(endpoint.key_variable, "").strip() if endpoint.key_variable else ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"the key in {endpoint.key_variable} has characters that no header may have; set it again")
        self._wants_log_probabilities = True
        self._num_given_up = 0
        self._resume_at = 0.0
        self._stopped: InputError | None = None
        self._unsettled = 0  # answers on their way, or not yet taken by who asked
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._client = _make_client(endpoint, self._key)
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)
        self._thread.start()

    def identity(self) -> Mapping[str, Any]:
        """Return the server's name for the model and the revision the user gave; where the server is does not matter."""
        return {"engine": "openai", "model": self._endpoint.model, "revision": self._endpoint.revision}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """Return an answer for every request, in order."""
        answers = dict(pair for together in self.stream(requests, sampling) for pair in together)
        return [answers[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Answer]]]:
        """Yield answers as they come; where the engine stops, first those that are on their way and then its error."""
        came: queue.SimpleQueue[tuple[int, Answer | None]] = queue.SimpleQueue()
        with self._changed:
            self._unsettled += len(requests)
        num_left = len(requests)
        self._loop.call_soon_threadsafe(self._start, list(requests), sampling, came)
        try:
            while num_left:
                number, answer = came.get()
                if answer is not None:
                    yield [(number, answer)]
                num_left -= 1
                self._settle(1)
        finally:
            self._settle(num_left)
        if self._stopped is not None:
            # Others' answers are waited for as well: who reads this error may end the process, and they are paid for.
            with self._changed:
                self._changed.wait_for(lambda: not self._unsettled, self._endpoint.request_seconds)
            raise self._stopped

    def close(self) -> None:
        """Close the connections; requests on their way are given up."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(_CONNECT_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _settle(self, num: int) -> None:
        with self._changed:
            self._unsettled -= num
            self._changed.notify_all()

    def _start(
        self, requests: list[Request], sampling: Sampling, came: "queue.SimpleQueue[tuple[int, Answer | None]]"
    ) -> None:
        async def work(number: int, request: Request) -> None:
            answer: Answer | None = None
            try:
                answer = await self._answer(request, sampling)
            except _StoppedError:
                logger.debug("not sent, the engine has stopped")
            finally:
                came.put((number, answer))

        tasks = [self._loop.create_task(work(number, request)) for number, request in enumerate(requests)]
        _keep(tasks)

    async def _answer(self, request: Request, sampling: Sampling) -> Answer:
        async with self._slots:
            held = (estimate_prompt_tokens(request), sampling.max_new_tokens)
            await self._hold(held)
            answer = failed("no answer")
            try:
                answer = await self._insist(request, sampling)
            finally:
                self._budget.settle(held, (answer.num_prompt_tokens, answer.num_new_tokens))
            return answer

    async def _hold(self, held: tuple[int, int]) -> None:
        try:
            while self._stopped is None and not self._budget.hold(*held):
                await asyncio.sleep(_POLL_SECONDS)
        except InputError as error:
            self._stop(error)
        if self._stopped is not None:
            raise _StoppedError

    async def _insist(self, request: Request, sampling: Sampling) -> Answer:
        """Ask until there is an answer, a permanent error, or no time or try left."""
        endpoint = self._endpoint
        deadline = self._loop.time() + endpoint.request_seconds
        for number in range(endpoint.max_tries):
            await self._wait_for_resume(deadline)
            try:
                # Half of what is left: a server that says nothing is asked again at least once.
                answer = await self._try(request, sampling, (deadline - self._loop.time()) / 2)
            except _PermanentError as error:
                self._num_given_up = 0
                return failed(str(error))
            except _TemporaryError as error:
                reason = str(error)
                pause = max(error.pause, self._pause(number))
                if self._loop.time() + pause >= deadline:
                    break
                logger.debug("asking again try=%d pause=%.1f error=%s", number + 1, pause, reason)
                if number + 1 < endpoint.max_tries:
                    await asyncio.sleep(pause)
            else:
                self._num_given_up = 0
                return answer
        return self._give_up(reason)

    def _give_up(self, reason: str) -> Answer:
        self._num_given_up += 1
        if self._num_given_up >= _MAX_GIVEN_UP:
            self._stop(
                InputError(
                    f"{self._url} does not answer: {self._num_given_up} requests in a row were given up, the last one with: {reason}. "
                    f"Every answer is kept; look after the server and give the same command again, it goes on from there"
                )
            )
        if self._stopped is not None:
            raise _StoppedError  # the row is not to blame: it is to be asked about again, not to become an error
        return failed(f"{reason} (given up)")

    def _pause(self, number: int) -> float:
        longest = min(_MAX_PAUSE_SECONDS, self._endpoint.first_pause_seconds * 2**number)
        # Spread, so that what failed together does not come back together.
        return float(longest * random.uniform(0.5, 1.0))

    async def _wait_for_resume(self, deadline: float) -> None:
        while self._stopped is None and (left := self._resume_at - self._loop.time()) > 0:
            await asyncio.sleep(min(left, max(0.0, deadline - self._loop.time())) + _POLL_SECONDS)
            if self._loop.time() >= deadline:
                return
        if self._stopped is not None:
            raise _StoppedError

    async def _try(self, request: Request, sampling: Sampling, seconds: float) -> Answer:
        import httpx

        wants_log_probabilities = sampling.log_probabilities and self._wants_log_probabilities
        body = request_body(request, sampling, self._endpoint.model, wants_log_probabilities=wants_log_probabilities)
        try:
            async with asyncio.timeout(max(seconds, _POLL_SECONDS)):
                response, content = await self._post(body)
        except TimeoutError:
            raise _TemporaryError(f"no answer within {seconds:.1f} seconds") from None
        except httpx.HTTPError as error:
            raise _TemporaryError(self._hide(f"{type(error).__name__}: {error}")) from error
        if response.status_code == HTTPStatus.OK:
            try:
                return read_answer(content, request)
            except MalformedAnswerError as error:
                raise _TemporaryError(self._hide(str(error))) from error
        message, code = read_error(content)
        if wants_log_probabilities and response.status_code in (400, 422) and "logprob" in message.lower():
            self._wants_log_probabilities = False
            return await self._try(request, sampling, seconds)
        self._judge(response, self._hide(message), code)
        raise AssertionError("unreachable")

    async def _post(self, body: bytes) -> "tuple[httpx.Response, bytes]":
        async with self._client.stream("POST", self._url, content=body) as response:
            content = bytearray()
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _PermanentError("the server packed its answer although it was asked not to")
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > self._endpoint.max_answer_bytes:
                    raise _PermanentError(f"the answer is longer than {self._endpoint.max_answer_bytes} bytes")
            return response, bytes(content)

    def _judge(self, response: "httpx.Response", message: str, code: str) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        said = f"HTTP {status}: {message}" if message else f"HTTP {status}"
        if code in _QUOTA_CODES or status == HTTPStatus.PAYMENT_REQUIRED:
            self._end(f"{self._url} wants to be paid first: {said}; see to the account there")
        if status in _TEMPORARY:
            pause = _retry_after(response.headers.get("retry-after", ""))
            if pause and status in (429, 503):
                # Asked of all who ask, not of this request only.
                self._resume_at = max(self._resume_at, self._loop.time() + min(pause, self._endpoint.request_seconds))
            raise _TemporaryError(said, pause)
        if status in (401, 403):
            variable = self._endpoint.key_variable
            named = (
                f"the key in {variable}" if self._key else f"a request without a key ({variable or 'none'} is not set)"
            )
            self._end(f"{self._url} refuses {named}: {said}; set the variable where the work runs")
        if status in (404, 405):
            self._end(
                f"{self._url} has no such model or address: {said}; url= ends in /v1, and model= is the server's own name, got "
                f"{self._endpoint.model!r}"
            )
        if response.is_redirect:
            self._end(
                f"{self._url} redirects to {one_line(response.headers.get('location', ''))!r}, and a key is not carried elsewhere; "
                f"give the address itself as url="
            )
        raise _PermanentError(said)

    def _end(self, message: str) -> None:
        self._stop(InputError(f"{message}. Every answer is kept; the same command goes on from there"))
        raise _StoppedError

    def _stop(self, error: InputError) -> None:
        self._stopped = self._stopped or error

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


# A task that nobody refers to may be collected while it runs.
_tasks: set["asyncio.Task[None]"] = set()


def _keep(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


def _make_client(endpoint: Endpoint, key: str) -> "httpx.AsyncClient":
    import httpx

    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    # How long a whole request may take is watched by who sends it: httpx watches single reads, which a slow drip always meets.
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, follow_redirects=False)


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; 0 where it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return 0.0
        seconds = (when - datetime.now(UTC)).total_seconds() if when.tzinfo else 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
