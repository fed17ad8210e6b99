"""Where exports go: whole or not at all, gone on with after a kill, never over something else."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import fsspec
import pytest

from curate.executor import Executor
from curate.store import Store
from pipelines.export.target import ExportReport, Files, Part, Target, split_evenly, write_file
from schemas.errors import InputError, ShardError
from schemas.progress import SilentProgress

PARTS = [Part(number, 10 * number, 10 * number + 10) for number in range(4)]


def write(store: Store, part: Part) -> dict[str, Any]:
    files: Files = {}
    with write_file(store, f"data/{part.number}.bin", files) as file:
        file.write(bytes(range(part.start, part.stop)))
    return {"files": files}


def write_all_but_two(store: Store, part: Part) -> dict[str, Any]:
    if part.number == 2:
        raise InputError("sample 25 is broken; mend it")
    return write(store, part)


def write_with_note(store: Store, part: Part) -> dict[str, Any]:
    """Note that a part was written, beside the target."""
    (Path(store.root).parent / "written").mkdir(exist_ok=True)
    (Path(store.root).parent / "written" / str(part.number)).write_text("")
    return write(store, part)


def export(out: str | Path, executor: Executor, function: Any = write, **settings: object) -> ExportReport:
    target = Target(str(out), "test", {"of": "something", **settings})
    if found := target.find():
        return found
    target.run(function, PARTS, executor, SilentProgress())
    target.write("last.json", b"{}\n")
    return target.publish("something", 40, notes={"say": "this"})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_rows_are_cut_into_parts_that_differ_by_at_most_one() -> None:
    assert [part.stop - part.start for part in split_evenly(10, 4)] == [4, 3, 3]
    assert [(part.start, part.stop) for part in split_evenly(3, 10)] == [(0, 3)]
    with pytest.raises(InputError, match="at least 1 sample, not 0"):
        split_evenly(3, 0)


def test_an_export_is_whole_and_says_what_is_in_it(ray_session: Executor, tmp_path: Path) -> None:
    report = export(tmp_path / "out", ray_session)
    assert names(tmp_path) == [*(f"out/data/{n}.bin" for n in range(4)), "out/export.json", "out/last.json"]
    assert (tmp_path / "out/data/2.bin").read_bytes() == bytes(range(20, 30))
    assert (report.num_samples, report.num_files, report.num_bytes) == (40, 5, 43)
    assert json.loads((tmp_path / "out/export.json").read_text())["files"]["last.json"]["bytes"] == 3


def test_a_second_run_proves_the_first_byte_by_byte(ray_session: Executor, tmp_path: Path) -> None:
    export(tmp_path / "out", ray_session)
    again = export(tmp_path / "out", ray_session)
    assert again.was_current
    assert again.notes == {"say": "this"}
    (tmp_path / "out/data/1.bin").write_bytes(bytes(10))
    with pytest.raises(InputError, match=r"data/1\.bin is not as it was exported"):
        export(tmp_path / "out", ray_session)


def test_something_else_is_never_written_over(ray_session: Executor, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("dear to me")
    with pytest.raises(InputError, match="exists and is not empty; give another --out"):
        export(tmp_path / "mine", ray_session)
    export(tmp_path / "out", ray_session)
    with pytest.raises(InputError, match=r"an export of something else \(test of something, or other settings\)"):
        export(tmp_path / "out", ray_session, size=3)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="is a file; give a folder"):
        export(tmp_path / "file", ray_session)
    assert (tmp_path / "mine/notes.txt").read_text() == "dear to me"
    (tmp_path / "empty").mkdir()
    assert not export(tmp_path / "empty", ray_session).was_current


def test_a_failed_part_leaves_no_target_and_the_others_are_kept(ray_session: Executor, tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=r"export: 1 of 4 parts failed; 00002: InputError: sample 25 is broken; mend it"
    ):
        export(tmp_path / "out", ray_session, write_all_but_two)
    assert not (tmp_path / "out").exists()
    export(tmp_path / "out", ray_session, write_with_note)
    assert names(tmp_path / "written") == ["2"]
    assert len(names(tmp_path / "out")) == 6


def _be_killed(out: str, at: str) -> None:
    """Export in this process, and end it without warning when a file of that name is about to be written."""

    class Mortal(Target):
        def write(self, path: str, data: bytes) -> None:
            super().write(path, data)
            if at == "write":
                os.kill(os.getpid(), signal.SIGKILL)

        def _finish(self, content: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    target = Mortal(out, "test", {"of": "something"})
    for part in PARTS:
        result = write(target.staging, part)
        target.staging.commit_json(f"parts/{part.number:05d}.json", result)
    with Executor(num_workers=1) as executor:
        target.run(write, PARTS, executor, SilentProgress())
    target.write("last.json", b"{}\n")
    target.publish("something", 40)


@pytest.mark.parametrize("at", ["write", "finish"])
def test_a_kill_before_the_end_leaves_nothing_that_looks_whole(ray_session: Executor, tmp_path: Path, at: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_be_killed, args=(str(tmp_path / "out"), at))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    export(tmp_path / "out", ray_session, write_with_note)
    assert not (tmp_path / "written").exists(), "parts that were done were written again"
    assert len(names(tmp_path / "out")) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_object_store_gets_the_files_and_last_export_json(ray_session: Executor) -> None:
    out = "memory://exports/of/mine"
    target = Target(out, "test", {"of": "something"})
    for part in PARTS:
        target._files |= write(target.staging, part)["files"]
    assert target.publish("something", 40).location.endswith("exports/of/mine")
    filesystem = fsspec.filesystem("memory")
    assert sorted(path.rpartition("mine/")[2] for path in filesystem.find("/exports/of")) == [
        *(f"data/{n}.bin" for n in range(4)),
        "export.json",
    ]
    found = Target(out, "test", {"of": "something"}).find()
    assert found is not None
    assert found.was_current
    with pytest.raises(InputError, match="folder of its own"):
        Target("memory://", "test", {})
