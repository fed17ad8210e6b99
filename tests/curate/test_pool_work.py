"""Workers of pool-wide operators: results in order, errors as they are, lost workers replaced."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curate.executor import Executor
from curate.pool_work import PoolWork, machine_memory
from schemas.errors import InputError


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 3:
        raise InputError(f"no {number}")
    return number


def total(values: np.ndarray) -> float:
    return float(values.sum())


def in_process(_: int) -> int:
    return os.getpid()


def die_once(job: tuple[str, int]) -> int:
    path, number = Path(job[0]), job[1]
    if number == 2 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_order_with_any_number_of_workers(tmp_path: Path) -> None:
    wanted = [number * number for number in range(9)]
    assert list(PoolWork(tmp_path).map(square, range(9))) == wanted
    for workers in (1, 2):
        with Executor(num_workers=workers) as executor:
            work = PoolWork(tmp_path, executor)
            assert list(work.map(square, iter(range(9)))) == wanted
            assert list(work.map(total, [np.ones(5), np.ones(7)])) == [5.0, 7.0]
            with pytest.raises(InputError, match="no 3"):
                list(work.map(refuse, range(5)))


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    with Executor(num_workers=2) as executor:
        jobs = [(str(tmp_path / "died"), number) for number in range(5)]
        assert list(PoolWork(tmp_path, executor).map(die_once, jobs)) == [0, 1, 2, 3, 4]
    assert (tmp_path / "died").exists()


def test_a_lone_item_needs_no_ray(tmp_path: Path) -> None:
    with Executor() as executor:
        assert list(PoolWork(tmp_path, executor).map(square, [4])) == [16]
        assert list(PoolWork(tmp_path, executor).map(square, [])) == []
        assert not executor._has_started


_LITTLE_WORK = """
import os, sys
from pathlib import Path
from curate.executor import Executor
from curate.pool_work import PoolWork
from tests.curate.test_pool_work import in_process

with Executor(num_workers=2) as executor:
    work = PoolWork(Path(sys.argv[1]), executor)
    assert set(work.map(in_process, range(4), core_seconds=0.1)) == {os.getpid()}
    assert not executor.has_started
    assert os.getpid() not in set(work.map(in_process, range(4), core_seconds=1000.0))
    assert executor.has_started
    assert os.getpid() not in set(work.map(in_process, range(4), core_seconds=0.1))
print("all held")
"""


def test_little_work_needs_no_ray_unless_it_is_up(tmp_path: Path) -> None:
    # A process of its own: other tests leave Ray up in this one.
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _LITTLE_WORK, str(tmp_path)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280, check=False)
    assert result.stdout == "all held\n", result.stderr


def test_the_budget_is_a_part_of_the_machine(tmp_path: Path) -> None:
    assert 0 < PoolWork(tmp_path).memory_bytes < machine_memory()
    assert PoolWork(tmp_path, memory_bytes=1000).memory_bytes == 1000
