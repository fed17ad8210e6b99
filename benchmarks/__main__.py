"""Runs every `bench_<what>.py` in a process of its own and writes what it prints to `results/<what>_<hardware>_<date>.md`.

python -m benchmarks               # all of them but those that need a GPU
python -m benchmarks select        # one
"""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARIES = (
    *("torch", "ray", "duckdb", "pyarrow", "opencv-python-headless", "simplejpeg"),
    *("img2dataset", "webdataset", "mosaicml-streaming", "litdata"),
)


def main(names: Sequence[str]) -> int:
    """Run the named benchmarks (all that need no GPU when none is named); return 1 if one failed."""
    known = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    # Those of GPUs by name only: most machines have none.
    failed = [name for name in names or [name for name in known if not name.startswith("gpu_")] if not run(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str) -> bool:
    """Run one benchmark, its messages going to stderr, and write its report; tell whether it ended well."""
    command = [sys.executable, "-m", f"benchmarks.bench_{name}"]
    print(f"== {name}", file=sys.stderr, flush=True)
    began = datetime.datetime.now(datetime.UTC)
    result = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=False)
    print(result.stdout, flush=True)
    if result.returncode or not result.stdout.strip():
        return False
    seconds = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    path = FOLDER / "results" / f"{name}_{hardware_slug()}_{began:%Y-%m-%d}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(report(name, result.stdout, began, seconds), encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr, flush=True)
    return True


def report(name: str, table: str, began: datetime.datetime, seconds: float) -> str:
    """Return the result file: what ran, on what, with which versions, and the benchmark's own words."""
    head = [
        f"# {name}",
        "",
        f"- command: `python -m benchmarks {name}` ({seconds:.0f} s)",
        f"- date: {began:%Y-%m-%d %H:%M} UTC, revision {revision()}",
        f"- hardware: {describe_hardware()}",
        f"- load average at the end: {os.getloadavg()[0]:.1f}",
        f"- versions: Python {platform.python_version()}, {versions()}",
    ]
    return "\n".join(head) + f"\n\n{table.strip()}\n"


def describe_hardware() -> str:
    """Return the processor's name, the CPUs this process may use, and the memory in GiB."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {cpus} CPUs, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def hardware_slug() -> str:
    """Return the hardware as a part of a file name: `2cpu-xeon`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = re.sub(r"\(r\)|\(tm\)|@.*|cpu|processor|\b\d+-core\b|intel|amd|apple", " ", processor().lower())
    return f"{cpus}cpu-{'-'.join(re.findall(r'[a-z0-9.]+', words)[:2]) or platform.machine()}"


def processor() -> str:
    """Return the processor's model name."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def revision() -> str:
    """Return the commit, with a plus where files differ from it."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=FOLDER, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip()


def versions() -> str:
    """Return the versions of the libraries a benchmark may measure."""
    found = []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
