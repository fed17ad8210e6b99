"""Somebody else's server that speaks OpenAI's protocol: `transformers serve`, with a small model made here, on a CPU."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.models.answer_cache import AnswerCache, CachedEngine
from curate.models.budget import Budget, Limits
from curate.models.engine import Message, Request, Sampling
from curate.models.engine_openai import Endpoint, OpenAiEngine
from curate.models.engine_transformers import TransformersEngine
from tests.language_model import WORDS, make_language_model

MISSING = [name for name in ("fastapi", "uvicorn", "openai", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"pip install 'transformers[serving]' brings {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_language_model(tmp_path_factory.mktemp("model"))
    # The server, unlike our engine, follows it.
    (folder / "generation_config.json").unlink()
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server and wait until it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    deadline = time.monotonic() + 300
    while True:
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/v1"
    server.kill()
    server.wait()


def test_a_real_server_answers_as_the_same_model_does_in_this_process(url: str, model: Path, tmp_path: Path) -> None:
    requests = [
        Request(messages=(Message(role="user", text=f"{first} {second}"),))
        for first, second in zip(WORDS[:12], WORDS[12:24], strict=True)
    ]
    sampling = Sampling(max_new_tokens=8)
    engine = OpenAiEngine(Endpoint(url=url, model=str(model), key_variable="", concurrency=4), Budget(Limits()))
    cached = CachedEngine(engine, AnswerCache(tmp_path))
    answers = cached.generate(requests, sampling)
    here = TransformersEngine(str(model)).generate(requests, sampling)
    assert [answer.text for answer in answers] == [answer.text for answer in here]
    assert [answer.finish_reason for answer in answers] == [answer.finish_reason for answer in here]
    assert [answer.num_prompt_tokens for answer in answers] == [answer.num_prompt_tokens for answer in here]
    assert all(answer.is_cached for answer in cached.generate(requests, sampling))
