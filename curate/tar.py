"""Tar files as Winnow writes and reads them: plain USTAR with fixed owner and time, and an index of member bytes.

Headers are built by hand because a general tar library spends more time on them than the disk does on the bytes, and because a float
mtime makes it add a PAX header (1 KiB) before every member, which also makes two equal builds differ.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
RECORD = 20 * BLOCK
MAX_NAME_BYTES = 100

# mode 0444, uid and gid 0, mtime 0, owner and group "bigdata": img2dataset's, with a fixed time.
_MODE_OWNER = b"0000444\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"00000000000\0"
_TAIL = (
    b"0"
    + b"\0" * 100
    + b"ustar\x0000"
    + b"bigdata".ljust(32, b"\0")
    + b"bigdata".ljust(32, b"\0")
    + b"0000000\0" * 2
    + b"\0" * 167
)
_FIXED_SUM = sum(_MODE_OWNER) + sum(_MTIME) + sum(_TAIL) + 8 * ord(" ")
_MAX_SIZE = 8**11 - 1


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a tar: `offset` is the first byte of its data."""

    name: str
    offset: int
    size: int


def split_name(name: str) -> tuple[tuple[str, ...], str]:
    """Return the keys that a member's sample may be called by, without its folder first, and the member's suffix in lower case.

    As webdataset splits names: a key ends, and the suffix begins, at the first dot after the folder.
    """
    folder, slash, file = name.rpartition("/")
    base, _, suffix = file.partition(".")
    return (base, f"{folder}/{base}") if slash else (base,), suffix.lower()


class TarWriter:
    """Writes members to `file` in the order given; the same members give the same bytes. `close` ends the archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member and return the offset of its data; names are at most 100 bytes of UTF-8."""
        padding = -len(data) % BLOCK
        self._file.write(_header(name, len(data)))
        self._file.write(data)
        if padding:
            self._file.write(bytes(padding))
        offset = self.position + BLOCK
        self.position = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Write the end-of-archive blocks; the file itself stays open."""
        end = self.position + 2 * BLOCK
        self._file.write(bytes(2 * BLOCK + -end % RECORD))
        self.position = end + -end % RECORD


def index_tar(file: BinaryIO) -> Iterator[Member]:
    """Yield the regular files of an open, seekable tar in order, reading headers only; a truncated tar raises `tarfile.ReadError`."""
    size = file.seek(0, 2)
    position = 0
    override: dict[str, str] = {}
    while position + BLOCK <= size:
        file.seek(position)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        member_bytes = int(override.get("size", _parse_size(header, position)))
        offset = position + BLOCK
        position = offset + member_bytes + -member_bytes % BLOCK
        if offset + member_bytes > size:
            raise tarfile.ReadError(
                f"tar is cut off: the member at byte {offset - BLOCK} needs {offset + member_bytes} bytes, the file has {size}"
            )
        kind = header[156:157]
        if kind in (b"x", b"L"):
            file.seek(offset)
            body = file.read(member_bytes)
            override.update(
                _parse_pax(body) if kind == b"x" else {"path": body.rstrip(b"\0").decode("utf-8", "surrogateescape")}
            )
            continue
        if kind in (b"0", b"\0", b"7"):
            yield Member(override.get("path") or _parse_name(header), offset, member_bytes)
        override = {}
    if size % BLOCK or size == 0:
        raise tarfile.ReadError(f"tar is cut off: {size} bytes are not whole blocks")


def _header(name: str, size: int) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"tar member name {name!r} has {len(encoded)} bytes; USTAR holds 1 to {MAX_NAME_BYTES}")
    if size > _MAX_SIZE:
        raise ValueError(f"tar member {name!r} has {size} bytes; USTAR holds {_MAX_SIZE}")
    size_field = b"%011o\0" % size
    checksum = _FIXED_SUM + sum(encoded) + sum(size_field)
    return b"".join((
        encoded.ljust(MAX_NAME_BYTES, b"\0"),
        _MODE_OWNER,
        size_field,
        _MTIME,
        b"%06o\0 " % checksum,
        _TAIL,
    ))


def _parse_size(header: bytes, position: int) -> int:
    field = header[124:136]
    if field[0] & 0x80:  # GNU base-256, for members over 8 GiB
        return int.from_bytes(field[1:], "big")
    try:
        if int(header[148:156].split(b"\0")[0].strip() or b"0", 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise tarfile.ReadError(f"not a tar header at byte {position}: checksum differs")
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise tarfile.ReadError(f"not a tar header at byte {position}") from error


def _parse_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0].decode("utf-8", "surrogateescape")
    prefix = header[345:500].split(b"\0")[0].decode("utf-8", "surrogateescape") if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _parse_pax(body: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while body and body[:1] != b"\0":
        length = int(body.split(b" ", 1)[0])
        key, _, value = body[: length - 1].split(b" ", 1)[1].partition(b"=")
        if key in (b"path", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        body = body[length:]
    return records
