"""The executor under real Ray: outcomes, retries, killed workers, laziness, cancellation."""

import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curate.executor import Executor
from schemas.errors import ContractError, InputError
from tests.kill.processes import Process, descendants, kill, reap


def square(unit: int) -> int:
    return unit * unit


def multiply(factor: int, unit: int) -> int:
    return factor * unit


def threads(unit: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def fail_on_odd(unit: int) -> int:
    if unit % 2:
        raise ValueError(f"odd unit {unit}")
    return unit


def fail_until(folder: Path, times: int, unit: int) -> int:
    attempt = len(list(folder.iterdir()))
    (folder / str(attempt)).touch()
    if attempt < times:
        raise OSError("disk is shy")
    return attempt


def break_contract(folder: Path, unit: int) -> int:
    (folder / str(time.time_ns())).touch()
    raise ContractError("columns differ")


def kill_worker_once(folder: Path, unit: int) -> int:
    marker = folder / str(unit)
    if unit == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


def kill_worker(unit: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return unit


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_map_returns_every_unit_once(ray_session: Executor) -> None:
    outcomes = list(ray_session.map(square, range(20)))
    assert sorted((outcome.unit, outcome.result) for outcome in outcomes) == [(unit, unit * unit) for unit in range(20)]
    assert {outcome.error for outcome in outcomes} == {None}


def test_map_takes_partials(ray_session: Executor) -> None:
    assert sorted(outcome.result or 0 for outcome in ray_session.map(functools.partial(multiply, 3), [1, 2])) == [3, 6]


def test_nothing_to_do_does_not_start_ray() -> None:
    executor = Executor()
    assert list(executor.map(square, [])) == []
    assert not executor._has_started


def test_workers_run_one_thread_each(ray_session: Executor) -> None:
    assert [outcome.result for outcome in ray_session.map(threads, [0])] == ["1"]


def test_an_exception_is_an_outcome_and_the_others_go_on(ray_session: Executor) -> None:
    outcomes = {outcome.unit: outcome for outcome in ray_session.map(fail_on_odd, range(4), max_retries=0)}
    assert [outcomes[unit].result for unit in (0, 2)] == [0, 2]
    assert outcomes[1].error == "ValueError: odd unit 1"
    assert isinstance(outcomes[3].cause, ValueError)


def test_exceptions_are_tried_again(ray_session: Executor, tmp_path: Path) -> None:
    (outcome,) = ray_session.map(functools.partial(fail_until, tmp_path, 2), [7], max_retries=2)
    assert outcome.result == 2


def test_retries_are_bounded(ray_session: Executor, tmp_path: Path) -> None:
    (outcome,) = ray_session.map(functools.partial(fail_until, tmp_path, 9), [7], max_retries=1)
    assert outcome.error == "OSError: disk is shy"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_mistake_that_cannot_heal_is_not_tried_again(ray_session: Executor, tmp_path: Path) -> None:
    (outcome,) = ray_session.map(functools.partial(break_contract, tmp_path), [7], max_retries=2)
    assert isinstance(outcome.cause, ContractError)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_worker_is_replaced(ray_session: Executor, tmp_path: Path) -> None:
    outcomes = list(ray_session.map(functools.partial(kill_worker_once, tmp_path), range(5)))
    assert sorted(outcome.result for outcome in outcomes if outcome.result is not None) == [0, 1, 2, 3, 4]


def test_a_unit_that_always_kills_its_worker_is_given_up(ray_session: Executor) -> None:
    (outcome,) = ray_session.map(kill_worker, [0])
    assert outcome.error is not None
    assert "6 workers died on this unit" in outcome.error


def test_units_are_pulled_as_workers_become_free(ray_session: Executor) -> None:
    pulled = []

    def units() -> Iterator[float]:
        for _ in range(50):
            pulled.append(1)
            yield 0.05

    iterator = ray_session.map(sleep, units(), max_in_flight=3)
    next(iterator)
    assert len(pulled) <= 6
    iterator.close()  # type: ignore[attr-defined]


def test_leaving_early_frees_the_workers(ray_session: Executor) -> None:
    iterator = ray_session.map(sleep, [0.0, 300.0, 300.0, 300.0], max_in_flight=4)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    started = time.monotonic()
    assert [outcome.result for outcome in ray_session.map(square, range(4), max_in_flight=4)]
    assert time.monotonic() - started < 60


def test_more_cpus_than_any_node_has_is_refused(ray_session: Executor) -> None:
    with pytest.raises(InputError, match="needs 1000 CPUs and the largest node of this Ray cluster has"):
        list(ray_session.map(square, [1], cpus=1000))


def test_no_workers_is_refused() -> None:
    with pytest.raises(InputError, match="num_workers is 0"):
        Executor(num_workers=0)


def test_ctrl_c_cancels_and_raises(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(
        textwrap.dedent(
            """
            import time
            from curate.executor import Executor

            with Executor(num_workers=2) as executor:
                executor.start()
                print("ready", flush=True)
                try:
                    list(executor.map(time.sleep, [300.0] * 4))
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
                print([outcome.result for outcome in executor.map(abs, [-1])], flush=True)
            """
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output == "interrupted\n[1]\n"


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_node_killed_while_it_starts_ends_in_a_message(victim: str) -> None:
    script = """
        import os, signal, sys, threading, time
        from pathlib import Path
        from curate.executor import Executor
        from schemas.errors import WinnowError

        def kill():
            while True:
                for entry in Path("/proc").glob("[0-9]*/stat"):
                    try:
                        head, _, rest = entry.read_text().rpartition(")")
                    except OSError:
                        continue
                    if head.partition("(")[2] == sys.argv[1] and int(rest.split()[1]) == os.getpid():
                        os.kill(int(entry.parent.name), signal.SIGKILL)
                        return
                time.sleep(0.01)

        threading.Thread(target=kill, daemon=True).start()
        try:
            with Executor(num_workers=2) as executor:
                executor.start()
                print([outcome.result for outcome in executor.map(abs, [-1])])
        except WinnowError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), victim]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    # Ray may notice, or the watch over the node, whichever is first; a hang is neither.
    assert "run the same command again, it goes on where it was" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def count_up(unit: int) -> Iterator[int]:
    yield from range(unit)


def fail_in_stream(unit: int) -> Iterator[int]:
    yield 1
    raise ValueError(f"stream {unit} broke")


def write_items(folder: Path, unit: int) -> Iterator[bytes]:
    for index in range(unit):
        (folder / str(index)).touch()
        yield b"x" * 1000


def die_in_stream(folder: Path, unit: int) -> Iterator[int]:
    yield 1
    if not (folder / f"stream{unit}").exists():
        (folder / f"stream{unit}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield 2


def load_sum() -> Callable[[int, Iterator[int]], int]:
    return lambda unit, items: sum(items)


def load_nothing() -> Callable[[int, Iterator[int]], int]:
    raise InputError("no weights in this folder")


def load_slow_reader(folder: Path) -> Callable[[int, Iterator[bytes]], int]:
    def consume(unit: int, items: Iterator[bytes]) -> int:
        next(items)
        time.sleep(3)
        ahead = len(list(folder.iterdir()))
        return ahead + 0 * sum(len(item) for item in items)

    return consume


def load_suicide(folder: Path) -> Callable[[int, Iterator[int]], int]:
    def consume(unit: int, items: Iterator[int]) -> int:
        total = sum(items)
        if not (folder / "actor").exists():
            (folder / "actor").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return total

    return consume


def test_streams_are_consumed_whole(ray_session: Executor) -> None:
    outcomes = list(ray_session.map_streams(count_up, load_sum, range(12)))
    assert {outcome.unit: outcome.result for outcome in outcomes} == {n: n * (n - 1) // 2 for n in range(12)}


def test_a_stream_that_raises_is_the_units_error(ray_session: Executor) -> None:
    (outcome,) = ray_session.map_streams(fail_in_stream, load_sum, [3], max_retries=0)
    assert outcome.error == "ValueError: stream 3 broke"


def test_a_model_that_cannot_be_loaded_is_the_units_error(ray_session: Executor) -> None:
    (outcome,) = ray_session.map_streams(count_up, load_nothing, [3])
    assert isinstance(outcome.cause, InputError)
    assert outcome.error == "InputError: no weights in this folder"


def test_a_stream_waits_for_its_consumer(ray_session: Executor, tmp_path: Path) -> None:
    (outcome,) = ray_session.map_streams(
        functools.partial(write_items, tmp_path), functools.partial(load_slow_reader, tmp_path), [50]
    )
    assert outcome.result is not None
    assert outcome.result <= 6


def load_process_id() -> Callable[[int, Iterator[int]], tuple[int, int]]:
    return lambda unit, items: (os.getpid(), sum(items))


def test_what_waits_for_a_program_elsewhere_has_one_actor(ray_session: Executor) -> None:
    outcomes = list(ray_session.map_streams(count_up, load_process_id, range(8), gpus=0))
    assert sorted(outcome.result[1] for outcome in outcomes if outcome.result) == [0, 0, 1, 3, 6, 10, 15, 21]
    assert len({outcome.result[0] for outcome in outcomes if outcome.result}) == 1


def test_killed_streams_and_actors_are_replaced(ray_session: Executor, tmp_path: Path) -> None:
    streams = ray_session.map_streams(functools.partial(die_in_stream, tmp_path), load_sum, range(4))
    assert [outcome.result for outcome in streams] == [3] * 4
    actors = ray_session.map_streams(count_up, functools.partial(load_suicide, tmp_path), range(6))
    assert sorted(outcome.result or 0 for outcome in actors) == [0, 0, 1, 3, 6, 10]


def test_a_cluster_is_joined_by_its_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=3"]
    driver = """
        import sys
        from curate.executor import Executor

        with Executor(address=sys.argv[1]) as executor:
            print(sorted(outcome.result for outcome in executor.map(abs, [-3, -2])))
            print(executor._num_slots(1.0))
    """
    command = [sys.executable, "-c", textwrap.dedent(driver), f"127.0.0.1:{port}"]
    cluster = subprocess.Popen(
        [*head, "--include-dashboard=false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )
    try:
        assert cluster.stdout is not None
        assert any("will now block forever" in line for line in cluster.stdout)
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
        assert result.stdout.splitlines()[-2:] == ["[2, 3]", "4"]  # half as many again as the cluster's three CPUs
    finally:
        cluster.terminate()
        cluster.wait()


def is_new_worker(process: Process) -> bool:
    # A node's own command tells how it starts workers, and its agents are called by their tasks as workers are.
    return process.command.startswith("ray::IDLE") or ("default_worker.py" in process.command and not process.is_node)


def test_a_worker_that_dies_as_soon_as_it_is_there_stops_nothing() -> None:
    driver = """
        from curate.executor import Executor

        with Executor(num_workers=2) as executor:
            print(sorted(outcome.result for outcome in executor.map(abs, [-3, -2])))
    """
    command = [sys.executable, "-c", textwrap.dedent(driver)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        # Ray's node waits for its first workers before it answers a driver, where it begins with some.
        while not (workers := [child for child in descendants(process.pid) if is_new_worker(child)]):
            assert process.poll() is None
            time.sleep(0.02)
        kill(workers[0].pid)
        output, _ = process.communicate(timeout=150)
        assert (process.returncode, output) == (0, "[2, 3]\n")
    finally:
        alive = descendants(process.pid)
        process.kill()
        reap(alive)


def test_an_address_where_nobody_listens_is_named() -> None:
    script = """
        from curate.executor import Executor
        from schemas.errors import InputError

        try:
            Executor(address="127.0.0.1:1").start()
        except InputError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=200
    )
    assert "cannot join the Ray cluster at '127.0.0.1:1'" in result.stdout
    assert "start one with `ray start --head`" in result.stdout
