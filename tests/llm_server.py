"""A server that speaks OpenAI's chat completions, a real process on loopback, with every misbehaviour that servers are known for.

    with LlmServer(folder, latency=0.05) as server:
        server.url                                   # http://127.0.0.1:PORT/v1
        server.asked()                               # how often each question was asked, by key
        server.spans()                               # when each question came and was answered

It answers from the request alone: the same messages, picture and seed give the same text. A user's text that holds `!!NAME=VALUE*N`
makes the first N requests of that question go wrong (all of them where N is left out); `misbehave` lists the names.
What was asked is in a file, one line an event, so that it outlives the server.
"""

import argparse
import asyncio
import base64
import gzip
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

_DIRECTIVE = re.compile(r"!!([a-z_]+)(?:=([^\s*]+))?(?:\*(\d+))?")
_HUGE_BYTES = 64 << 20
WORDS = ("red", "green", "blue", "round", "square", "large", "small", "bright", "old", "new", "quiet", "tall")


def answer_text(text: str, image: bytes, seed: int | None) -> str:
    """Return what the server says: a few words, then what it was asked about, so that a test can see whose answer it is."""
    digest = hashlib.sha256(f"{text} {seed}".encode() + image).digest()
    words = " ".join(WORDS[byte % len(WORDS)] for byte in digest[:5])
    picture = hashlib.sha256(image).hexdigest()[:12] if image else "none"
    return f"{words}; picture {picture}; text {hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Site:
    """What the server knows; one in its process."""

    def __init__(self, log: Path, latency: float, key: str) -> None:
        self._log = log.open("a", buffering=1)
        self._latency = latency
        self._key = key
        self._asked: Counter[str] = Counter()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.read()
        content = json.loads(body)
        text, image = _question(content)
        key = hashlib.sha256(body).hexdigest()[:16]
        self._note("ask", key)
        self._asked[key] += 1
        if self._key and request.headers.get("Authorization") != f"Bearer {self._key}":
            return _error(401, f"wrong key {request.headers.get('Authorization', '')}")
        try:
            for name, value, times in _DIRECTIVE.findall(text):
                if not times or self._asked[key] <= int(times):
                    wrong = await self.misbehave(request, name, value)
                    if wrong is not None:
                        return wrong
            await asyncio.sleep(self._latency)
            return web.json_response(_completion(content, text, image))
        finally:
            self._note("end", key)

    async def misbehave(self, request: web.Request, name: str, value: str) -> web.StreamResponse | None:
        """Do what a directive says; None: answer properly after all."""
        if name == "status":
            return _error(int(value), "told to")
        if name == "busy":
            return _error(429, "slow down", headers={"Retry-After": value})
        if name == "quota":
            return _error(429, "you are out of money", code="insufficient_quota")
        if name == "redirect":
            return web.Response(status=307, headers={"Location": value})
        if name == "hang":
            await asyncio.sleep(3600)
        if name == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if name == "logprobs" and '"logprobs": true' in (await request.read()).decode():
            return _error(400, "logprobs are not supported")
        bodies = {
            "garbage": b"\x00\xff<html>not JSON",
            "schema": b'{"choices": "none"}',
            "no_message": b'{"choices": [{"message": []}]}',
            "nan": b'{"choices": [{"message": {"content": "odd"}, "logprobs": {"content": [{"logprob": NaN}]}}], "usage": {"prompt_tokens": -5}}',
            "deep": b'{"choices":' + b"[" * 200_000,
            "refuse": b'{"choices": [{"message": {"content": null, "refusal": "I will\\nnot"}, "finish_reason": "stop"}]}',
            "filter": b'{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}',
            "parts": b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}',
        }
        if name in bodies:
            return web.Response(body=bodies[name], content_type="application/json")
        if name == "packed":
            return web.Response(body=gzip.compress(b" " * _HUGE_BYTES), headers={"Content-Encoding": "gzip"})
        return await _stream_badly(request, name, value)

    def _note(self, event: str, key: str) -> None:
        self._log.write(f"{event} {key} {time.monotonic():.6f}\n")


async def _stream_badly(request: web.Request, name: str, value: str) -> web.StreamResponse | None:
    """Send a body that breaks off, never ends, or trickles."""
    response = web.StreamResponse()
    if name == "truncate":
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b'{"choices": [{"mess')
        assert request.transport is not None
        request.transport.close()
        return response
    if name == "huge":
        await response.prepare(request)
        for _ in range(_HUGE_BYTES // (1 << 16)):
            await response.write(b" " * (1 << 16))
        return response
    if name == "drip":
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(float(value))
    return None


def _question(content: dict[str, Any]) -> tuple[str, bytes]:
    """Return the text of all messages and the picture."""
    texts, image = [], b""
    for message in content["messages"]:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                texts.append(f"{message['role']}: {part['text']}")
            else:
                kind, _, data = part["image_url"]["url"].partition(";base64,")
                assert kind == "data:image/jpeg"
                image = base64.b64decode(data, validate=True)
    return "\n".join(texts), image


def _completion(content: dict[str, Any], text: str, image: bytes) -> dict[str, Any]:
    words = answer_text(text, image, content.get("seed")).split()
    said = " ".join(words[: content["max_tokens"]])
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": said},
        "finish_reason": "length" if len(words) > content["max_tokens"] else "stop",
    }
    if content.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": word, "logprob": -0.25} for word in said.split()]}
    usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(said.split())}
    return {"object": "chat.completion", "model": content["model"], "choices": [choice], "usage": usage}


def _error(status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


class LlmServer:
    """Starts the server as a process of its own; a context manager."""

    def __init__(self, folder: Path, *, latency: float = 0.0, key: str = "") -> None:
        self._log = folder / "asked.txt"
        self._arguments = ["--log", str(self._log), "--latency", str(latency), "--key", key]
        self._process: subprocess.Popen[str] | None = None
        self._num_forgotten = 0
        self.port = 0

    def __enter__(self) -> "LlmServer":
        # Bound and not listening: whoever asks a dead server is refused, and nobody else is given its port until it is started again.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._reserved.close()

    @property
    def url(self) -> str:
        """The address to give as `url`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start the process, on the same port as before where it ran before; returns when it listens."""
        arguments = [sys.executable, "-m", "tests.llm_server", "--port", str(self.port), *self._arguments]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root)
        assert self._process.stdout is not None
        assert int(self._process.stdout.readline()) == self.port

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def forget(self) -> None:
        """Leave out of `asked` and `spans` what was until now."""
        self._num_forgotten = len(self._lines())

    def asked(self) -> Counter[str]:
        """Return how often each request was sent, by a key over its whole body."""
        return Counter(key for event, key, _ in self._events() if event == "ask")

    def spans(self) -> list[tuple[float, float]]:
        """Return (came, answered) of every request that was answered, in seconds of a monotonic clock."""
        begun: dict[str, list[float]] = {}
        found = []
        for event, key, when in self._events():
            if event == "ask":
                begun.setdefault(key, []).append(when)
            elif begun.get(key):
                found.append((begun[key].pop(0), when))
        return found

    def _events(self) -> list[tuple[str, str, float]]:
        split = [line.split(" ") for line in self._lines()[self._num_forgotten :]]
        return [(parts[0], parts[1], float(parts[2])) for parts in split if len(parts) == 3]

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


async def _serve(arguments: argparse.Namespace) -> None:
    site = Site(Path(arguments.log), arguments.latency, arguments.key)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", site.complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    tcp = web.TCPSite(runner, "127.0.0.1", arguments.port, backlog=1024, reuse_address=True, reuse_port=True)
    await tcp.start()
    server = tcp._server
    assert isinstance(server, asyncio.Server)
    os.write(1, f"{server.sockets[0].getsockname()[1]}\n".encode())
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--key", default="")
    asyncio.run(_serve(parser.parse_args()))
