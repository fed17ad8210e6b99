"""The watch over a Ray node, on real processes that die or never come up."""

import socket
import subprocess
import sys
import textwrap
import time

import pytest

from curate.node_watch import dead_children, knock


def watch(start_seconds: float, dead_seconds: float, body: str) -> subprocess.CompletedProcess[str]:
    script = """
        import logging, subprocess, sys, time
        from curate.node_watch import NodeWatch, dead_children

        logging.basicConfig(format="%(message)s")
        child = subprocess.Popen(["sleep", "20"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        watch = NodeWatch(
            lambda: bool(dead_children(frozenset(["sleep"]))),
            start_seconds=float(sys.argv[1]),
            dead_seconds=float(sys.argv[2]),
            seconds_between_looks=0.05,
        )
        watch.start()
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(script) + textwrap.dedent(body),
        str(start_seconds),
        str(dead_seconds),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_a_dead_node_ends_the_process() -> None:
    result = watch(40, 0.3, "watch.has_started()\nchild.kill()\ntime.sleep(40)\nprint('went on')\n")
    assert result.returncode == 1
    assert result.stderr == "the Ray node of this machine died; run the same command again, it goes on where it was\n"
    assert result.stdout == ""


def test_a_node_that_dies_during_the_start_ends_the_process() -> None:
    result = watch(40, 0.3, "child.kill()\ntime.sleep(40)\n")
    assert (result.returncode, result.stderr[:35]) == (1, "the Ray node of this machine died; ")


def test_a_start_that_does_not_end_is_ended() -> None:
    result = watch(1, 40, "time.sleep(40)\n")
    assert result.returncode == 1
    assert result.stderr.startswith("Ray did not start within 1 seconds; run the same command again")


def test_a_death_that_is_noticed_in_time_is_left_to_ray() -> None:
    body = "watch.has_started()\nchild.kill()\ntime.sleep(0.3)\nchild.wait()\ntime.sleep(1)\nprint('went on')\n"
    result = watch(40, 0.8, body)
    assert (result.returncode, result.stdout) == (0, "went on\n")


def test_a_watch_that_was_stopped_ends_nothing() -> None:
    result = watch(0.5, 0.2, "watch.stop()\nchild.kill()\ntime.sleep(1)\nprint('went on')\n")
    assert (result.returncode, result.stdout) == (0, "went on\n")


def test_a_look_that_fails_counts_as_no() -> None:
    body = """
        def fail():
            raise RuntimeError("dictionary changed size during iteration")
        other = NodeWatch(fail, start_seconds=40, dead_seconds=0, seconds_between_looks=0.05)
        other.start()
        other.has_started()
        watch.stop()
        time.sleep(0.5)
        print('went on')
        child.kill()
    """
    result = watch(40, 40, body)
    assert (result.returncode, result.stdout) == (0, "went on\n")


def test_only_own_children_of_that_name_count() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert dead_children(frozenset(["sleep"])) == []
    child.kill()
    deadline = time.monotonic() + 20
    while not dead_children(frozenset(["sleep"])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert dead_children(frozenset(["sleep"])) == ["sleep"]
    assert dead_children(frozenset(["raylet"])) == []
    child.wait()
    assert dead_children(frozenset(["sleep"])) == []


def test_knocking_where_somebody_listens_and_where_nobody_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        knock(f"127.0.0.1:{port}")
        knock(f"ray://127.0.0.1:{port}")
    with pytest.raises(ConnectionError, match="refused"):
        knock(f"ray://127.0.0.1:{port}")
    for no_address in (None, "auto", "local"):
        knock(no_address)
