"""Finding and killing the processes of one run, by walking /proc: a driver, its Ray workers, its node process."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A descendant of the driver."""

    pid: int
    command: str

    @property
    def is_node(self) -> bool:
        """Ray's node process: everything on this machine hangs on it."""
        return "raylet/raylet" in self.command

    @property
    def is_worker(self) -> bool:
        """A process that runs tasks or actors, or a loader's worker."""
        # The node's own command tells how it starts workers.
        is_ray = self.command.startswith("ray::") or ("default_worker.py" in self.command and not self.is_node)
        return is_ray or "spawn_main" in self.command


def descendants(pid: int) -> list[Process]:
    """Return every living descendant of a process."""
    parents: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(Process(int(entry.name), command))
    found: list[Process] = []
    frontier = [pid]
    while frontier:
        children = parents.get(frontier.pop(), [])
        found += children
        frontier += [child.pid for child in children]
    return found


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `winnow ARGUMENTS` in a session of its own, its output going to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(arguments: Sequence[str], log: Path, timeout: float = 300) -> float:
    """Run `winnow ARGUMENTS` to its end and return the seconds it took; a failure shows the end of the log."""
    began = time.monotonic()
    process = start(arguments, log)
    code = process.wait(timeout)
    assert code == 0, f"winnow {' '.join(arguments)} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}"
    return time.monotonic() - began


def kill_and_finish(arguments: Sequence[str], kind: str, delay: float, log: Path, rng: random.Random) -> str:
    """Start a run, kill one of its processes after `delay` seconds, and wait for the end; return what was killed.

    kind is "driver", "worker" or "node"; where no such process is alive at that moment the driver is killed instead.
    """
    process = start(arguments, log)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        return "finished before the kill"
    alive = descendants(process.pid)
    candidates = {"worker": [p for p in alive if p.is_worker], "node": [p for p in alive if p.is_node]}.get(kind, [])
    victim = rng.choice(candidates) if candidates else Process(process.pid, "driver")
    kill(victim.pid)
    if victim.pid != process.pid:
        _wait(process)
    process.wait(30)
    reap(alive)
    return f"{'driver' if victim.pid == process.pid else kind} after {delay:.2f} s"


def _wait(process: "subprocess.Popen[bytes]") -> None:
    """Let a driver that lost a process recover or give up; one that hangs is a defect."""
    try:
        process.wait(240)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError("the driver hung after it lost a process") from error


def reap(processes: Sequence[Process]) -> None:
    """End what a killed driver left behind, so that twenty runs do not pile up on two cores."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(Path(f"/proc/{p.pid}").exists() for p in processes):
        time.sleep(0.1)
    for process in processes:
        kill(process.pid)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
