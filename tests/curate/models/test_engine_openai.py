"""The HTTP engine against a real server process that misbehaves in every way."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.models.answer_cache import AnswerCache, CachedEngine, engine_digest
from curate.models.budget import Budget, Limits
from curate.models.engine import Answer, Message, Request, Sampling
from curate.models.engine_openai import Endpoint, OpenAiEngine
from schemas.errors import InputError
from tests.llm_server import LlmServer, answer_text

KEY = "sk-very-secret-key"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmServer]:
    with LlmServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def server(shared: LlmServer) -> LlmServer:
    shared.forget()
    return shared


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[LlmServer]:
    with LlmServer(tmp_path, key=KEY) as running:
        yield running


def open_engine(server: LlmServer, limits: Limits = Limits(), **settings: object) -> OpenAiEngine:  # noqa: B008
    quick = {"first_pause_seconds": 0.01, "max_tries": 4, "request_seconds": 8.0}
    return OpenAiEngine(Endpoint(url=server.url, model="tiny", **{**quick, **settings}), Budget(limits))  # type: ignore[arg-type]


def ask(text: str, *, image: bytes = b"", seed: int = 0) -> Request:
    return Request(messages=(Message(role="user", text=text),), image=image, seed=seed)


def one(engine: OpenAiEngine, text: str) -> Answer:
    (answer,) = engine.generate([ask(text)], Sampling())
    engine.close()
    return answer


def test_answers_in_order_with_what_the_server_says_of_them(server: LlmServer) -> None:
    engine = open_engine(server)
    requests = [ask(f"question {number}", image=b"\xff\xd8%d" % number, seed=number) for number in range(40)]
    answers = engine.generate(requests, Sampling(temperature=0.7, log_probabilities=True))
    assert [answer.text for answer in answers] == [
        answer_text(f"user: question {number}", b"\xff\xd8%d" % number, number) for number in range(40)
    ]
    assert {(a.finish_reason, a.log_probability, a.num_prompt_tokens) for a in answers} == {("stop", -0.25, 3)}
    assert engine.generate([ask("short")], Sampling(max_new_tokens=2))[0].finish_reason == "length"
    assert sum(server.asked().values()) == 41


@pytest.mark.parametrize(
    "directive",
    [
        *("!!status=500*2", "!!status=503*1", "!!status=529*1", "!!busy=0.05*2", "!!reset*1", "!!truncate*2"),
        *("!!garbage*1", "!!schema*1", "!!no_message*1", "!!deep*1"),
    ],
)
def test_what_may_pass_is_asked_again(server: LlmServer, directive: str) -> None:
    answer = one(open_engine(server), f"hello {directive}")
    assert answer.text == answer_text(f"user: hello {directive}", b"", None)
    assert list(server.asked().values()) == [int(directive[-1]) + 1]


@pytest.mark.parametrize(
    ("directive", "error"),
    [
        ("!!status=500", "HTTP 500: told to (given up)"),
        ("!!garbage", "the answer is no JSON: ' \ufffd<html>not JSON' (given up)"),
        ("!!schema", "the answer has no choices (given up)"),
    ],
)
def test_what_does_not_pass_is_the_error_of_its_row(server: LlmServer, directive: str, error: str) -> None:
    answer = one(open_engine(server), directive)
    assert (answer.text, answer.finish_reason, answer.error) == (None, "error", error)
    assert list(server.asked().values()) == [4]


@pytest.mark.parametrize(
    ("directive", "error"),
    [
        ("!!status=400", "HTTP 400: told to"),
        ("!!status=413", "HTTP 413: told to"),
        ("!!huge", "the answer is longer than 4194304 bytes"),
        ("!!packed", "the server packed its answer although it was asked not to"),
        ("!!refuse", "the model refused: I will not"),
        ("!!filter", "the server's filter held the answer back"),
    ],
)
def test_what_would_be_the_same_again_is_asked_once(server: LlmServer, directive: str, error: str) -> None:
    assert one(open_engine(server), directive).error == error
    assert list(server.asked().values()) == [1]


def test_an_odd_but_readable_answer_is_read(server: LlmServer) -> None:
    answer = one(open_engine(server), "!!parts")
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    odd = one(open_engine(server), "!!nan")
    # Neither a probability that is no number nor a negative count goes any further.
    assert (odd.text, odd.log_probability) == ("odd", None)
    assert odd.num_prompt_tokens > 0


@pytest.mark.parametrize("directive", ["!!hang*1", "!!drip=0.05*1"])
def test_a_server_that_says_nothing_is_asked_again_in_time(server: LlmServer, directive: str) -> None:
    started = time.monotonic()
    assert one(open_engine(server, request_seconds=2.0), directive).text is not None
    assert 0.9 < time.monotonic() - started < 2.0


def test_a_request_takes_no_longer_than_it_may(server: LlmServer) -> None:
    started = time.monotonic()
    answer = one(open_engine(server, request_seconds=1.0), "!!drip=0.05")
    assert time.monotonic() - started < 1.5
    assert answer.error.startswith("no answer within ")


def test_retry_after_is_kept_by_all_requests(server: LlmServer) -> None:
    engine = open_engine(server, concurrency=1)
    started = time.monotonic()
    answers = engine.generate([ask("!!busy=1*1"), ask("a"), ask("b")], Sampling())
    assert all(answer.text for answer in answers)
    assert time.monotonic() - started > 1.0


def test_requests_at_once_are_bounded_and_batches_fill_the_gaps(tmp_path: Path) -> None:
    with LlmServer(tmp_path, latency=0.05) as server:
        engine = open_engine(server, concurrency=4)
        engine.generate([ask(str(number)) for number in range(20)], Sampling())
        spans = server.spans()
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running = [sum(step for _, step in edges[: number + 1]) for number in range(len(edges))]
    assert max(running) == 4


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("!!quota", "wants to be paid first: HTTP 429: you are out of money"),
        ("!!status=403", r"refuses a request without a key \(OPENAI_API_KEY is not set\): HTTP 403"),
        ("!!status=404", "has no such model or address: HTTP 404: told to; url= ends in /v1, .* got 'tiny'"),
        (
            "!!redirect=http://127.0.0.2:1/v1",
            "redirects to 'http://127.0.0.2:1/v1', and a key is not carried elsewhere",
        ),
    ],
)
def test_what_every_request_would_meet_ends_the_run(
    server: LlmServer, monkeypatch: pytest.MonkeyPatch, directive: str, message: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=message + ".*Every answer is kept"):
        one(open_engine(server), directive)
    assert list(server.asked().values()) == [1]


def test_a_server_that_is_gone_ends_the_run_instead_of_emptying_it(tmp_path: Path) -> None:
    with LlmServer(tmp_path) as server:
        _kill_and_start_again(server, tmp_path)


def _kill_and_start_again(server: LlmServer, tmp_path: Path) -> None:
    engine = CachedEngine(open_engine(server, concurrency=2), AnswerCache(tmp_path / "cache"))
    engine.generate([ask("a")], Sampling())
    server.kill()
    with pytest.raises(
        InputError, match="does not answer: 5 requests in a row were given up, the last one with: ConnectError"
    ):
        engine.generate([ask(str(number)) for number in range(30)], Sampling())
    server.start()
    again = CachedEngine(open_engine(server), AnswerCache(tmp_path / "cache"))
    assert all(a.text for a in again.generate([ask("a"), *(ask(str(n)) for n in range(30))], Sampling()))
    assert set(server.asked().values()) == {1}


def test_a_server_without_log_probabilities_is_asked_without(server: LlmServer) -> None:
    engine = open_engine(server)
    answers = engine.generate([ask("!!logprobs"), ask("other")], Sampling(log_probabilities=True))
    assert answers[0].text is not None
    assert answers[0].log_probability is None
    assert engine.generate([ask("third")], Sampling(log_probabilities=True))[0].log_probability is None


def test_the_key_is_sent_and_shown_nowhere(
    keyed: LlmServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("THEIR_KEY", KEY)
    engine = open_engine(keyed, key_variable="THEIR_KEY")
    cached = CachedEngine(engine, AnswerCache(tmp_path / "cache"))
    assert cached.generate([ask("a")], Sampling())[0].text is not None
    cached.close()
    assert KEY not in repr(engine.identity())
    # The server repeats the key it was given in its error.
    monkeypatch.setenv("THEIR_KEY", KEY + "-of-another")
    with pytest.raises(InputError, match=r"refuses the key in THEIR_KEY: HTTP 401: wrong key Bearer \*\*\*;"):
        one(open_engine(keyed, key_variable="THEIR_KEY"), "b")
    assert KEY not in caplog.text
    assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "cache").iterdir())


def test_a_budget_ends_the_run_before_it_is_exceeded_and_keeps_every_answer(server: LlmServer, tmp_path: Path) -> None:
    requests = [ask(f"question {number}") for number in range(30)]
    sampling = Sampling(max_new_tokens=12)

    def run(tokens: int) -> list[Answer]:
        cache = AnswerCache(tmp_path / "cache")
        inner = OpenAiEngine(
            Endpoint(url=server.url, model="tiny", concurrency=4),
            Budget(
                Limits(tokens=tokens), cache.spent(engine_digest({"engine": "openai", "model": "tiny", "revision": ""}))
            ),
        )
        return CachedEngine(inner, cache).generate(requests, sampling)

    with pytest.raises(InputError, match=r"budget_tokens=150 does not allow another request: .*raise the budget"):
        run(150)
    num_before = sum(server.asked().values())
    spent = AnswerCache(tmp_path / "cache").spent(engine_digest({"engine": "openai", "model": "tiny", "revision": ""}))
    assert 5 <= num_before < 30
    # Each question is 3 tokens and each answer 9, as this server counts.
    assert sum(spent) == 12 * num_before <= 150
    with pytest.raises(InputError, match=f"budget_tokens=150 does not allow another request: {12 * num_before} tokens"):
        run(150)
    assert all(answer.text for answer in run(10_000))
    assert set(server.asked().values()) == {1}


def test_a_budget_of_money_needs_no_more_than_prices(server: LlmServer) -> None:
    engine = open_engine(server, Limits(money=0.001, price_prompt=1.0, price_new=10.0))
    with pytest.raises(InputError, match=r"budget_money=0.001 does not allow another request: 0.000.* in money for"):
        engine.generate([ask(f"question {number}") for number in range(30)], Sampling(max_new_tokens=12))


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    server: LlmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a\nsk-b")
    with pytest.raises(InputError, match="the key in OPENAI_API_KEY has characters that no header may have") as caught:
        open_engine(server)
    assert "sk-a" not in str(caught.value)
