"""A server on loopback that speaks OpenAI's chat completions, and says what a function of the test says.

    with ChatModel(lambda question: question.texts[-1].upper()) as model:
        Rewrite(model="test", engine="openai", url=model.url, cache="none")
        model.questions                                    # all that was asked, in the order of arrival

`tests.llm_server` is the one that misbehaves; this one answers, as cleverly as its test needs.
"""

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass(frozen=True)
class Asked:
    """A request as the server sees it."""

    turns: tuple[tuple[str, str], ...]  # (role, text)
    image: bytes
    seed: int

    @property
    def texts(self) -> list[str]:
        """The texts of all turns."""
        return [text for _, text in self.turns]


class ChatModel:
    """Answers with `answer(asked)`; None is a server error. A context manager."""

    def __init__(self, answer: Callable[[Asked], str | None]) -> None:
        self.answer = answer
        self.questions: list[Asked] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.model = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """The address to give as `url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ChatModel":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ask(self, asked: Asked) -> str | None:
        """Note a request and return its answer."""
        with self._lock:
            self.questions.append(asked)
        return self.answer(asked)


class _Server(ThreadingHTTPServer):
    model: ChatModel
    daemon_threads = True
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        turns, image = [], b""
        for message in content["messages"]:
            parts = message["content"]
            if isinstance(parts, str):
                turns.append((message["role"], parts))
                continue
            for part in parts:
                if part["type"] == "text":
                    turns.append((message["role"], part["text"]))
                else:
                    image = base64.b64decode(part["image_url"]["url"].partition(";base64,")[2])
        text = self.server.model.ask(Asked(tuple(turns), image, content.get("seed", 0)))
        status, body = 400, {"error": {"message": "told to fail"}}
        if text is not None:
            said = text.split(content["stop"][0])[0] if content.get("stop") else text
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            status, body = 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
