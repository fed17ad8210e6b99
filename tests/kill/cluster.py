"""A Ray cluster of several nodes, each with processes of its own as on a machine of its own, that takes jobs and loses nodes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.kill.processes import descendants, kill, reap

START_SECONDS = 300
RAY = str(Path(sys.executable).with_name("ray"))


class Cluster:
    """A head that takes jobs, and workers to kill. A context manager.

    with Cluster(num_workers=2) as cluster:
        job = cluster.submit(["annotate", "--pool", pool, "image_stats", "--address", "auto"], log)
        cluster.kill_node(1)
        assert job.wait() == 0
    """

    def __init__(self, *, num_workers: int = 2, cpus: int = 2, environment: Mapping[str, str] | None = None) -> None:
        """Each worker node has `cpus` logical CPUs; the head, which runs the drivers, has one."""
        self._num_workers = num_workers
        self._cpus = cpus
        self._port, self._jobs_port = free_port(), free_port()
        self._environment = {
            **(environment or os.environ),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._submit = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{self._jobs_port}", "--"]
        self.nodes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Cluster":
        try:
            self._start_node([
                *("--head", f"--port={self._port}", "--num-cpus=1", "--include-dashboard=true"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={self._jobs_port}"),
            ])
            for _ in range(self._num_workers):
                self.add_node()
            self._wait_for_agent()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add_node(self) -> None:
        """Start a further node."""
        self._start_node([f"--address=127.0.0.1:{self._port}", f"--num-cpus={self._cpus}"])

    def submit(self, arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        """Submit `winnow ARGUMENTS` as a job; the process follows its output and ends with it."""
        with log.open("ab") as file:
            return subprocess.Popen(
                [*self._submit, sys.executable, "-m", "pipelines.cli", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def kill_node(self, number: int) -> None:
        """Kill every process of a node at once, as a power cut does; the head is number 0."""
        node = self.nodes[number]
        for process in [*descendants(node.pid), *descendants(node.pid)]:
            kill(process.pid)
        kill(node.pid)
        node.wait(30)

    def close(self) -> None:
        """End all nodes."""
        for node in reversed(self.nodes):
            alive = descendants(node.pid)
            node.terminate()
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait(10)
            reap(alive)
            if node.stdout:
                node.stdout.close()

    def _wait_for_agent(self) -> None:
        """Wait until the head takes jobs, which is some seconds after it says that it runs."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            found = subprocess.run([*self._submit, "true"], capture_output=True, text=True, env=self._environment)
            if found.returncode == 0:
                return
            assert time.monotonic() < deadline, f"no job was taken:\n{found.stdout[-2000:]}{found.stderr[-2000:]}"
            time.sleep(1)

    def _start_node(self, options: Sequence[str]) -> None:
        number = len(self.nodes)
        # Ray's default is one fixed port: where another cluster of this machine has it, the head never takes a job.
        agent = f"--dashboard-agent-listen-port={free_port()}"
        node = subprocess.Popen(
            [RAY, "start", "--block", "--object-store-memory=100000000", agent, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
        )
        self.nodes.append(node)
        assert node.stdout is not None
        seen: list[str] = []
        for line in node.stdout:
            seen.append(line)
            if "will now block forever" in line:
                return
        raise AssertionError(f"node {number} did not start:\n{''.join(seen)[-3000:]}")


def free_port() -> int:
    """Return a port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
