import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from curate.tar import TarWriter
from schemas.errors import StaleDatasetError
from train.reader import ImageReader, TarFile


def _write_tar(path: Path, members: list[bytes]) -> list[int]:
    with path.open("wb") as file:
        tar = TarWriter(file)
        offsets = [tar.add(f"{number:04d}.jpg", data) for number, data in enumerate(members)]
        tar.close()
    return offsets


@pytest.fixture
def tars(tmp_path: Path) -> tuple[list[TarFile], list[tuple[int, int, bytes]]]:
    """Four tars of five members: the tars, and (shard, offset, content) of each member."""
    files, members = [], []
    for shard in range(4):
        contents = [bytes([shard, number]) * (number * 100 + 1) for number in range(5)]
        path = tmp_path / f"{shard}.tar"
        offsets = _write_tar(path, contents)
        files.append(TarFile(str(path), path.stat().st_size))
        members += [(shard, offset, content) for offset, content in zip(offsets, contents, strict=True)]
    return files, members


def _read(reader: ImageReader, members: list[tuple[int, int, bytes]]) -> list[bytes]:
    return reader.read(
        np.array([shard for shard, _, _ in members]),
        np.array([offset for _, offset, _ in members]),
        np.array([len(content) for _, _, content in members]),
    )


def test_members_come_in_the_order_asked_for(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    shuffled = [members[number] for number in np.random.default_rng(0).permutation(len(members))]
    reader = ImageReader(files, max_open_files=2)
    assert _read(reader, shuffled) == [content for _, _, content in shuffled]
    assert _read(reader, []) == []
    reader.close()


def test_few_files_stay_open(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ImageReader(files, max_open_files=2)
    _read(reader, members)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_object_stores_are_read_by_range(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    memory = fsspec.filesystem("memory")
    for file in files:
        memory.pipe_file(f"/reader/{Path(file.location).name}", Path(file.location).read_bytes())
    remote = [TarFile(f"memory://reader/{Path(file.location).name}", file.num_bytes) for file in files]
    assert _read(ImageReader(remote), members[::-1]) == [content for _, _, content in members[::-1]]
    memory.rm("/reader", recursive=True)
    with pytest.raises(StaleDatasetError, match=r"memory://reader/0.tar is missing; build the dataset again"):
        _read(ImageReader(remote), members[:1])


def test_a_tar_of_another_size_is_stale(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    path = Path(files[0].location)
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(StaleDatasetError, match=r"0\.tar has \d+ bytes, the index says \d+; build the dataset again"):
        _read(ImageReader(files), members[:1])


def test_a_rewritten_tar_of_the_same_size_is_stale(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    path = Path(files[0].location)
    size = path.stat().st_size
    _write_tar(path, [b"other", b"x" * 700, b"y"])
    with path.open("r+b") as file:
        file.truncate(size)
    shard, offset, content = members[2]
    with pytest.raises(
        StaleDatasetError, match=rf"0\.tar has no member of {len(content)} bytes at byte {offset}, as the index says"
    ):
        _read(ImageReader(files), [(shard, offset, content)])


def test_a_range_past_the_end_is_stale(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    shard, offset, content = members[0]
    with pytest.raises(StaleDatasetError, match=f"at byte {offset + 10**6}"):
        _read(ImageReader(files), [(shard, offset + 10**6, content)])


def test_a_missing_tar_is_stale(tmp_path: Path) -> None:
    with pytest.raises(StaleDatasetError, match=r"gone\.tar is missing; build the dataset again"):
        _read(ImageReader([TarFile(str(tmp_path / "gone.tar"))]), [(0, 512, b"x")])


def test_members_with_extended_headers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "foreign.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("n" * 150 + ".jpg")
        info.size, info.mtime = 5, 1.5
        tar.addfile(info, io.BytesIO(b"bytes"))
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[0].offset_data
    assert _read(ImageReader([TarFile(str(path))]), [(0, offset, b"bytes")]) == [b"bytes"]


def test_a_member_is_named_in_errors(tars: tuple[list[TarFile], list[tuple[int, int, bytes]]]) -> None:
    files, members = tars
    shard, offset, _ = members[7]
    assert ImageReader(files).describe(shard, offset) == f"{files[1].location}, member '0002.jpg' at byte {offset}"
