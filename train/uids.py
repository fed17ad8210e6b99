"""Uids as 16 bytes each: read from and written to columns of text, and found again among millions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import StaleDatasetError

UID_BYTES = 16

Uids = npt.NDArray[np.uint8]  # (n, 16)
Indices = npt.NDArray[np.int64]

_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_NO_DIGIT = 16
_VALUES = np.full(256, _NO_DIGIT, dtype=np.uint8)
_VALUES[_DIGITS] = np.arange(16, dtype=np.uint8)
_SPELLINGS = np.stack([_DIGITS[np.arange(256) >> 4], _DIGITS[np.arange(256) & 15]], axis=1)  # (256, 2)
# A string array of Arrow holds less than 2 GiB.
_SPELLED_AT_ONCE = 1 << 24


def parse_uids(column: pa.ChunkedArray, location: str) -> Uids:
    """Return uids as bytes, shape (n, 16); `location` names the file in errors."""
    parts = [_parse(chunk) for chunk in column.chunks]
    if any(part is None for part in parts):
        raise StaleDatasetError(
            f"{location} has uids that are not 32 lower-case hex characters; build the dataset again"
        )
    return np.concatenate([np.zeros((0, UID_BYTES), dtype=np.uint8), *(part for part in parts if part is not None)])


def spell_uids(uids: Uids) -> pa.ChunkedArray:
    """Return uids as a column of 32 hex characters each."""
    parts = []
    for start in range(0, len(uids), _SPELLED_AT_ONCE):
        part = uids[start : start + _SPELLED_AT_ONCE]
        ends = np.arange(len(part) + 1, dtype=np.int32) * (2 * UID_BYTES)
        parts.append(
            pa.Array.from_buffers(
                pa.string(), len(part), [None, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(_SPELLINGS[part]))]
            )
        )
    return pa.chunked_array(parts, pa.string())


@dataclass(frozen=True)
class UidOrder:
    """Finds the rows of uids; 16 bytes a row."""

    heads: npt.NDArray[np.uint64]  # the first halves, sorted
    rows: Indices
    uids: Uids

    @classmethod
    def of(cls, uids: Uids) -> "UidOrder":
        """Sort the uids of a dataset, which has each once."""
        heads = _heads(uids)
        rows = np.argsort(heads)
        return cls(heads[rows], rows.astype(np.int64, copy=False), uids)

    def find(self, uids: Uids) -> Indices:
        """Return the row of each uid, -1 where there is none."""
        found = np.full(len(uids), -1, dtype=np.int64)
        if not len(self.rows):
            return found
        # In order: the search for a key begins where the one before it ended.
        wanted = _heads(uids)
        pending = np.argsort(wanted)
        places = np.searchsorted(self.heads, wanted[pending])
        while len(pending):
            inside = places < len(self.heads)
            inside[inside] = self.heads[places[inside]] == wanted[pending[inside]]
            pending, places = pending[inside], places[inside]
            rows = self.rows[places]
            is_found = (self.uids[rows] == uids[pending]).all(axis=1)
            found[pending[is_found]] = rows[is_found]
            # Another uid that begins alike.
            pending, places = pending[~is_found], places[~is_found] + 1
        return found


def _parse(chunk: pa.Array) -> Uids | None:
    """Return uids as bytes, or None where some are none."""
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if chunk.null_count or not is_text(chunk.type):
        return None
    if not len(chunk):
        return np.zeros((0, UID_BYTES), dtype=np.uint8)
    wide = chunk.cast(pa.large_string())
    _, ends, text = wide.buffers()
    places = np.frombuffer(ends, dtype=np.int64)[wide.offset : wide.offset + len(wide) + 1]
    if (np.diff(places) != 2 * UID_BYTES).any():
        return None
    digits = _VALUES[np.frombuffer(text, dtype=np.uint8)[places[0] : places[-1]]].reshape(-1, UID_BYTES, 2)
    if digits.max() == _NO_DIGIT:
        return None
    parsed: Uids = np.bitwise_or(digits[:, :, 0] << 4, digits[:, :, 1], dtype=np.uint8)
    return parsed


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of those of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _heads(uids: Uids) -> npt.NDArray[np.uint64]:
    halves = np.ascontiguousarray(uids).view(">u8")[:, 0]
    return halves.astype(np.uint64)
