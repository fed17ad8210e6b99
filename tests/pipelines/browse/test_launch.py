"""The command as a process: its address, its refusals, its end."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from curate.catalog import Catalog
from curate.store import Pool
from pipelines.browse.access import Access
from pipelines.browse.launch import listen, url_of
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return annotated_pool(tmp_path / "pool")


def start(pool: Pool, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", "browse", "--pool", pool.root, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def server(pool: Pool) -> Iterator[subprocess.Popen[str]]:
    process = start(pool)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped_and_keeps_what_was_decided(
    server: subprocess.Popen[str], pool: Pool, number: signal.Signals
) -> None:
    assert server.stdout is not None
    assert server.stderr is not None
    address = server.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    assert "token=" in address
    base = address.partition("/?")[0]
    with httpx.Client(base_url=base, headers={"origin": base}) as client:
        assert client.get(address).status_code == 200
        uid = client.get("/api/grid").json()["rows"][4]["uid"]
        client.post("/api/decide", json={"uids": [uid], "decision": "drop"}).raise_for_status()
    server.send_signal(number)
    assert server.wait(timeout=60) == 130
    assert server.stderr.read() == "stopped; what was decided is in the pool as manual.decision\n"
    with Catalog(pool) as catalog:
        assert catalog.sql("SELECT uid FROM pool WHERE manual.decision = 'drop'").fetchall() == [(uid,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines"),
        (["--host", "0.0.0.0", "--allow-remote", "--no-token"], "--no-token is for this machine only"),
        (["--selection", "nobody"], "has no selection 'nobody'"),
        (["--host", "192.0.2.1", "--allow-remote"], "cannot listen at 192.0.2.1:0"),
    ],
)
def test_what_cannot_be_is_refused(pool: Pool, arguments: list[str], message: str) -> None:
    process = start(pool, *arguments)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="give another --port, or none for a free one"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_addresses() -> None:
    assert url_of(Access(token="a&b"), 80) == "http://127.0.0.1:80/?token=a%26b"
    assert url_of(Access(token=""), 80) == "http://127.0.0.1:80/"
    assert url_of(Access(host="::1", token=""), 80) == "http://[::1]:80/"
    assert url_of(Access(host="0.0.0.0", allow_remote=True, token="x"), 80) == "http://127.0.0.1:80/?token=x"


def test_small_answers_are_sent_at_once() -> None:
    """Sockets of an unnamed protocol are not told to, and every answer would wait 40 ms."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
