import os
import threading
import time
from pathlib import Path

import pytest

from train.made_once import make_once, name_folder, read_ahead, remove_folder, removed_folders

MARK = "mark"


def write(folder: Path) -> None:
    (folder / MARK).write_text("whole")


def age(folder: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(folder, (then, then))


def test_one_of_many_makes_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "cache" / name_folder("a")
    made = []

    def make(folder: Path) -> None:
        time.sleep(0.1)
        assert not target.exists()
        write(folder)
        made.append(folder)

    threads = [threading.Thread(target=make_once, args=(target, make), kwargs={"mark": MARK}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (target / MARK).read_text() == "whole"
    assert [path for path in target.parent.iterdir() if path.is_dir()] == [target]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / name_folder("a")

    def make(folder: Path) -> None:
        write(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        make_once(target, make, mark=MARK)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / name_folder("a")
    abandoned = tmp_path / f".{target.name}.99.abcd.staging"
    abandoned.mkdir()
    make_once(target, write, mark=MARK)
    assert not abandoned.exists()


def test_only_own_folders_that_nobody_opens_make_room(tmp_path: Path) -> None:
    used, unused, foreign, other = (tmp_path / name for name in (*map(name_folder, "ab"), "photos", name_folder("c")))
    for folder in (used, unused):
        make_once(folder, write, mark=MARK)
    foreign.mkdir()
    write(foreign)  # a file of that name, but no name of ours
    other.mkdir()  # our kind of name, but not the file
    for folder in (used, unused, foreign, other):
        age(folder, 31)
    make_once(used, write, mark=MARK)  # opened again
    make_once(tmp_path / name_folder("d"), write, mark=MARK)
    assert not unused.exists()
    assert used.exists()
    assert foreign.exists()
    assert other.exists()


def test_a_removal_that_was_killed_is_found(tmp_path: Path) -> None:
    target = tmp_path / name_folder("a")
    make_once(target, write, mark=MARK)
    assert removed_folders(str(tmp_path)) == []
    half = tmp_path / f".{target.name}.abcd.removed.staging"
    target.rename(half)
    assert removed_folders(str(tmp_path)) == [str(half)]
    remove_folder(str(half))
    assert removed_folders(str(tmp_path)) == []


def test_results_come_in_order_and_only_some_ahead() -> None:
    asked: list[int] = []

    def double(number: int) -> int:
        asked.append(number)
        time.sleep(0.02 / (1 + number))
        return 2 * number

    results = read_ahead(double, iter(range(10)), num_threads=2)
    assert next(results) == 0
    assert len(asked) <= 3
    assert list(results) == [2 * number for number in range(1, 10)]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda number: 1 // number, [1, 0], num_threads=2))
