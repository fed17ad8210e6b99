"""Tars as we write them, read by others; tars of others, read by us."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.tar import MAX_NAME_BYTES, RECORD, TarWriter, index_tar, split_name

FILES = [("000000.jpg", b"\xff\xd8picture"), ("000000.json", b"{}"), ("000000.txt", b""), ("b.bin", bytes(5000))]


def write(files: list[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    offsets = [writer.add(name, data) for name, data in files]
    writer.close()
    assert writer.position == len(buffer.getvalue())
    return buffer.getvalue(), offsets


def test_the_standard_library_reads_it() -> None:
    data, offsets = write(FILES)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [name for name, _ in FILES]
        assert [tar.extractfile(member).read() for member in members] == [data for _, data in FILES]  # type: ignore[union-attr]
        assert [member.offset_data for member in members] == offsets
        assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {
            (0, 0o444, 0, 0, "bigdata", "bigdata")
        }
    assert len(data) % RECORD == 0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.JPG", (("a",), "jpg")),
        ("folder.d/a.url.txt", (("a", "folder.d/a"), "url.txt")),
        ("/a", (("a", "/a"), "")),
    ],
)
def test_names_are_split_as_webdataset_splits_them(name: str, found: tuple[tuple[str, ...], str]) -> None:
    assert split_name(name) == found


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1, max_size=99), st.binary()
        ),
        max_size=8,
    )
)
def test_the_index_finds_every_byte(files: list[tuple[str, bytes]]) -> None:
    data, offsets = write(files)
    found = list(index_tar(io.BytesIO(data)))
    assert [(member.name, member.offset, member.size) for member in found] == [
        (name, offset, len(body)) for (name, body), offset in zip(files, offsets, strict=True)
    ]
    assert [data[member.offset : member.offset + member.size] for member in found] == [body for _, body in files]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_other_formats(format: int) -> None:
    names = ["dir/" + "n" * 150 + ".jpg", "ü" * 60 + ".txt", "short.json"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 7, 1.5
            tar.addfile(member, io.BytesIO(b"content"))
    found = list(index_tar(buffer))
    assert [member.name for member in found] == names
    assert {buffer.getvalue()[member.offset : member.offset + member.size] for member in found} == {b"content"}


def test_a_long_path_is_split_in_ustar() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a" * 90 + "/" + "b" * 90)
        tar.addfile(member)
    assert [member.name for member in index_tar(buffer)] == ["a" * 90 + "/" + "b" * 90]


@pytest.mark.parametrize("keep", [512 + 100, 700, 512 * 5 + 10])
def test_a_tar_that_is_cut_off_is_an_error(keep: int) -> None:
    data, _ = write([("a.bin", bytes(400)), ("b.bin", bytes(3000))])
    with pytest.raises(tarfile.ReadError, match="cut off"):
        list(index_tar(io.BytesIO(data[:keep])))


def test_what_is_no_tar_is_an_error() -> None:
    with pytest.raises(tarfile.ReadError, match="not a tar header at byte 0"):
        list(index_tar(io.BytesIO(b"<html>" * 1000)))
    with pytest.raises(tarfile.ReadError, match="cut off: 0 bytes"):
        list(index_tar(io.BytesIO(b"")))


def test_names_that_do_not_fit_are_refused() -> None:
    writer = TarWriter(io.BytesIO())
    writer.add("n" * MAX_NAME_BYTES, b"")
    for name in ("n" * (MAX_NAME_BYTES + 1), ""):
        with pytest.raises(ValueError, match="USTAR holds 1 to 100"):
            writer.add(name, b"")
