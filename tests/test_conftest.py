"""How the tests themselves run: without a GPU unless asked for, and those that need one say how."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_TESTS = """
import os
import pytest

def test_ordinary():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == {visible!r}

@pytest.mark.gpu
def test_gpu():
    import torch
    assert torch.cuda.is_available()
"""


@pytest.mark.parametrize(("asked", "given", "visible"), [(None, "0", ""), ("", "0", ""), ("1", "-1", "-1")])
def test_gpus_are_hidden_unless_asked_for(tmp_path: Path, asked: str | None, given: str, visible: str) -> None:
    (tmp_path / "test_gpus.py").write_text(_TESTS.format(visible=visible))
    environment = {name: value for name, value in os.environ.items() if name != "WINNOW_TEST_GPU"}
    environment |= {"CUDA_VISIBLE_DEVICES": given, **({} if asked is None else {"WINNOW_TEST_GPU": asked})}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n0", "-rs", "-c", ROOT / "pyproject.toml", tmp_path],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # "-1" names no device: what needs one is skipped then too.
    assert "1 passed, 1 skipped" in result.stdout, result.stdout + result.stderr
    assert "needs a CUDA device and `make test-gpu`" in result.stdout
