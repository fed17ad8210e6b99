"""No answer twice: by key, from several threads and processes, and after a kill at any instant."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curate.models.answer_cache import FILE_NAME, AnswerCache, CachedEngine, engine_digest, request_keys
from curate.models.engine import Answer, Engine, Message, Request, Sampling, failed
from schemas.errors import InputError

DRAWN = Sampling(temperature=1.0)


class CountingEngine(Engine):
    """Answers with the question in capitals, once it is allowed to, and counts."""

    def __init__(self, *, delay: float = 0.0, fail: Mapping[str, int] | None = None, stop_after: int = 10**9) -> None:
        self.asked: Counter[str] = Counter()
        self._delay, self._fail, self._stop_after = delay, dict(fail or {}), stop_after

    def identity(self) -> Mapping[str, Any]:
        return {"engine": "counting"}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        return [answer for ((_, answer),) in self.stream(requests, sampling)]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Answer]]]:
        # Last first: an order that nobody may rely on.
        for number in reversed(range(len(requests))):
            if self._stop_after <= 0:
                raise InputError("the budget is used up")
            self._stop_after -= 1
            time.sleep(self._delay)
            text = requests[number].messages[-1].text
            self.asked[text] += 1
            if self._fail.get(text, 0) >= self.asked[text]:
                yield [(number, failed("HTTP 500"))]
            else:
                yield [(number, Answer(text=text.upper(), finish_reason="stop", num_prompt_tokens=3, num_new_tokens=2))]


def ask(text: str, *, seed: int = 0, image: bytes = b"") -> Request:
    return Request(messages=(Message(role="user", text=text),), seed=seed, image=image)


def texts(answers: Sequence[Answer]) -> list[str | None]:
    return [answer.text for answer in answers]


def test_asks_each_question_once_and_answers_in_order(tmp_path: Path) -> None:
    inner = CountingEngine()
    engine = CachedEngine(inner, AnswerCache(tmp_path))
    answers = engine.generate([ask("a"), ask("b"), ask("a"), ask("c")], Sampling())
    assert texts(answers) == ["A", "B", "A", "C"]
    again = CachedEngine(inner, AnswerCache(tmp_path)).generate([ask("c"), ask("d"), ask("a")], Sampling())
    assert texts(again) == ["C", "D", "A"]
    assert [answer.is_cached for answer in again] == [True, False, True]
    assert again[0] == replace(answers[3], is_cached=True)
    assert inner.asked == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_everything_that_changes_an_answer_is_in_the_key() -> None:
    base = request_keys("e", [ask("a", seed=1)], DRAWN)[0]
    others = [
        request_keys("f", [ask("a", seed=1)], DRAWN)[0],
        request_keys("e", [ask("b", seed=1)], DRAWN)[0],
        request_keys("e", [ask("a", seed=2)], DRAWN)[0],
        request_keys("e", [ask("a", seed=1, image=b"x")], DRAWN)[0],
        request_keys("e", [Request(messages=(Message(role="system", text="a"),), seed=1)], DRAWN)[0],
        *(
            request_keys("e", [ask("a", seed=1)], replace(DRAWN, **change))[0]
            for change in (
                {"temperature": 0.5},
                {"top_p": 0.9},
                {"top_k": 5},
                {"max_new_tokens": 5},
                {"stop": ("\n",)},
                {"num_beams": 2},
                {"log_probabilities": True},
            )
        ),
    ]
    assert len({base, *others}) == len(others) + 1


def test_text_cannot_pretend_to_be_another_message() -> None:
    one = Request(messages=(Message(role="user", text="auser 1 b"),))
    two = Request(messages=(Message(role="user", text="a"), Message(role="user", text="b")))
    assert request_keys("e", [one], DRAWN) != request_keys("e", [two], DRAWN)


def test_a_greedy_answer_does_not_depend_on_seed_or_what_only_a_draw_uses() -> None:
    assert request_keys("e", [ask("a", seed=1)], Sampling()) == request_keys(
        "e", [ask("a")], Sampling(top_p=0.5, top_k=3)
    )


def test_failures_are_not_kept(tmp_path: Path) -> None:
    inner = CountingEngine(fail={"b": 1})
    engine = CachedEngine(inner, AnswerCache(tmp_path))
    first = engine.generate([ask("a"), ask("b")], Sampling())
    assert texts(first) == ["A", None]
    assert first[1].error == "HTTP 500"
    assert texts(engine.generate([ask("a"), ask("b")], Sampling())) == ["A", "B"]
    assert inner.asked == {"a": 1, "b": 2}


def test_threads_that_ask_the_same_at_once_share_the_answer(tmp_path: Path) -> None:
    inner = CountingEngine(delay=0.01)
    engine = CachedEngine(inner, AnswerCache(tmp_path))
    questions = [f"q{number}" for number in range(20)]
    found: list[list[str | None]] = []

    def work(seed: int) -> None:
        mine = random.Random(seed).sample(questions, len(questions))
        found.append(sorted(str(text) for text in texts(engine.generate([ask(q) for q in mine], Sampling()))))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [sorted(q.upper() for q in questions)] * 6
    assert set(inner.asked.values()) == {1}


def test_who_waits_for_an_asker_that_is_stopped_asks_himself(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    inner = CountingEngine(delay=0.2, stop_after=1)
    engine = CachedEngine(inner, cache)
    errors: list[str] = []

    def work(*names: str) -> None:
        try:
            engine.generate([ask(name) for name in names], Sampling())
        except InputError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work, args=("a", "b")), threading.Thread(target=work, args=("a",))]
    threads[0].start()
    time.sleep(0.05)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    # "b" was answered first and is kept; nobody hangs.
    assert errors == ["the budget is used up"] * 2
    assert texts(list(cache.get(request_keys(engine_digest(inner.identity()), [ask("b")], Sampling())).values())) == [
        "B"
    ]


def test_spending_is_counted_once_for_each_answer(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    engine = CachedEngine(CountingEngine(), cache)
    for _ in range(3):
        engine.generate([ask("a"), ask("b")], Sampling())
    assert cache.spent(engine_digest(engine.identity())) == (6, 4)
    assert cache.spent("another") == (0, 0)


WRITER = """
import sys
from curate.models.answer_cache import AnswerCache
from curate.models.engine import Answer
cache = AnswerCache(sys.argv[1])
start, step = int(sys.argv[2]), int(sys.argv[3])
for number in range(start, start + 100_000 * step, step):
    cache.put("e", [(number.to_bytes(32, "big"), Answer(text=f"answer {number}" * 20, finish_reason="stop", num_new_tokens=1))])
    print(number, flush=True)
"""


def test_processes_killed_at_any_instant_lose_nothing_they_had_put(tmp_path: Path) -> None:
    rng = random.Random(0)
    said: set[int] = set()
    for attempt in range(4):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(attempt * 1_000_000 + half), "2"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for half in (0, 1)
        ]
        for writer in writers:
            assert writer.stdout is not None
            said.add(int(writer.stdout.readline()))
        time.sleep(rng.uniform(0.0, 0.3))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            assert writer.stdout is not None
            said |= {int(line) for line in writer.stdout.read().splitlines() if line.isdigit()}
            writer.wait()
    cache = AnswerCache(tmp_path)
    keys = [number.to_bytes(32, "big") for number in said]
    found = cache.get(keys)
    assert len(said) > 50
    missing = [int.from_bytes(key, "big") for key in keys if key not in found]
    assert missing == []
    assert all(answer.text == f"answer {int.from_bytes(key, 'big')}" * 20 for key, answer in found.items())
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM answers").fetchone()[0] == cache.spent("e")[1]


@pytest.mark.parametrize("damage", ["no database", "folder is a file"])
def test_a_cache_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    if damage == "no database":
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"this is not SQLite" * 1000)
    else:
        folder.write_text("a file")
    with pytest.raises(
        InputError, match=r"cache of answers .*answers-v1.sqlite cannot be used: .*; give another folder"
    ):
        AnswerCache(folder)


def test_answers_about_a_sample_leave_no_byte(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    engine = CachedEngine(CountingEngine(), cache)
    asked = [
        Request(messages=(Message(role="user", text="what of alice, whose name nobody must find"),), sample="a" * 32),
        Request(messages=(Message(role="user", text="what of bob"),), sample="b" * 32),
        # The same question about another sample has the same answer.
        Request(messages=(Message(role="user", text="what of alice, whose name nobody must find"),), sample="c" * 32),
        Request(messages=(Message(role="user", text="of nobody"),)),
    ]
    engine.generate(asked, Sampling())
    keys = request_keys(engine_digest({"engine": "counting"}), asked, Sampling())
    assert cache.find(["a" * 32], ()) == cache.find(["c" * 32], ()) == [keys[0]]
    assert cache.find([], {"WHAT OF BOB"}) == []  # it is known what that answer is about
    assert cache.find(["0" * 32], {"OF NOBODY"}) == [keys[3]]
    assert cache.forget(cache.find(["a" * 32], ()))
    assert cache.find(["a" * 32, "c" * 32], ()) == []
    assert set(cache.get(keys)) == {keys[1], keys[3]}
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"WHAT OF BOB" in held
    assert b"ALICE" not in held.upper()
    cache.close()


def test_a_log_that_is_still_read_is_told(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put("e", [(b"k" * 32, Answer(text="alice", finish_reason="stop"))], [("a" * 32, b"k" * 32)])
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM answers").fetchone()
    cache._connection.execute("PRAGMA busy_timeout = 100")
    assert cache.forget([b"k" * 32]) is False
    other.execute("COMMIT")
    other.close()
    assert cache.forget([b"k" * 32])
    cache.close()
    assert b"alice" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
