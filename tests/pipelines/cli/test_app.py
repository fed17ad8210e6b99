"""How the command line ends when it is interrupted before a command runs."""

import signal
import subprocess
import sys

import pytest

from pipelines.cli.app import end_before_command, handle_interrupts


@pytest.mark.parametrize("moment", ["import pipelines.cli.curation", "from pipelines.cli import main"])
def test_ctrl_c_while_modules_load_ends_cleanly(moment: str) -> None:
    # The signal comes from within, so that it meets the same module every time.
    script = (
        "import importlib.abc, os, signal, sys\n"
        "class Press(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == sys.argv[1]:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        f"{moment}\n"
        "from pipelines.cli import main\n"
        "sys.argv[1:] = ['operators']\nmain()\n"
    )
    command = [sys.executable, "-c", script, "pipelines.cli.training" if "main" in moment else "pipelines.cli.flags"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "stopped before anything was done\n"


def test_ctrl_c_while_arguments_are_read_ends_cleanly() -> None:
    script = (
        "import os, signal, sys\nfrom pipelines.cli import app, main\nfrom pipelines.cli.app import _Commands\n"
        "read = _Commands.make_context\n"
        "def press(*args, **more):\n    os.kill(os.getpid(), signal.SIGINT)\n    return read(*args, **more)\n"
        "_Commands.make_context = press\nsys.argv[1:] = ['operators']\nmain()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "stopped before anything was done\n")


def test_who_ignores_interrupts_goes_on_ignoring_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        handle_interrupts(end_before_command)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle_interrupts(end_before_command)
        assert signal.getsignal(signal.SIGINT) is end_before_command
    finally:
        signal.signal(signal.SIGINT, before)
