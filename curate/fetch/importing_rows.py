"""What every kind of import shares: finding columns by their usual names, making rows of them, and keeping paths inside their folder."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from schemas.errors import InputError
from schemas.sample import FETCH_COLUMNS, INGEST_COLUMNS, RESERVED_COLUMNS
from schemas.uid import is_uid, sample_uid

URL_NAMES = ("url", "image_url", "img_url", "link")
CAPTION_NAMES = ("caption", "text", "alt_text", "alt", "captions", "title", "description")
FILE_NAMES = ("file_name", "filename", "file", "image", "filepath", "file_path", "image_path", "path", "img")

# Columns of a scan: what identifies a row, what a pool keeps of it, and where its picture lies until it is copied.
SCAN_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("uid", pa.string()),
    ("pair", pa.string()),
    *FETCH_COLUMNS,
    ("source_file_", pa.string()),
    ("source_row_", pa.int64()),
)
_OWN = {name for name, _ in SCAN_COLUMNS}
_TAKEN = RESERVED_COLUMNS | {name for name, _ in INGEST_COLUMNS} | {"shard", "row", "alt_text", *_OWN}
CAPTIONS_COLUMN = "captions"  # every text of a row that brought several
_DRIVE = re.compile(r"^[A-Za-z]:")


def find_column(names: Sequence[str], wanted: str, usual: Sequence[str], *, flag: str, place: str) -> str | None:
    """Return the column `wanted`, or the first of the usual names whatever its case; a wanted one that is missing is an error."""
    if wanted:
        if wanted not in names:
            raise InputError(f"{place} has no column {wanted!r} (--{flag}); it has {', '.join(names)}")
        return wanted
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in usual if name in lowered), None)


def clean_text(value: object) -> str | None:
    """Return a value as text that any reader of Parquet accepts: lone surrogates become the replacement character."""
    if value is None:
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split_captions(value: object) -> tuple[str | None, list[str] | None]:
    """Return a row's caption, and all of them where it brought a list: the first that is not blank is the caption."""
    if not isinstance(value, list | tuple):
        return clean_text(value), None
    texts = [text for text in map(clean_text, value) if text is not None]
    return next((text for text in texts if text.strip()), None), texts


def pool_name(name: str) -> str:
    """Return the name a carried column gets: `source_...` where the pool keeps the name for itself."""
    return f"source_{name.lower()}" if name.lower() in _TAKEN else name


def carried_value(value: object) -> object:
    """Return a value as a Parquet column can hold it: scalars and lists of text as they are, anything nested as JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [clean_text(item) for item in value]
    return clean_text(json.dumps(value, ensure_ascii=False, default=str))


def make_table(rows: Sequence[Mapping[str, object]], carried: Sequence[Mapping[str, object]]) -> pa.Table:
    """Return scan rows as a table; a carried column whose values have no one type becomes text."""
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in SCAN_COLUMNS}
    names = dict.fromkeys(name for values in carried for name in values)
    for name in names:
        values = [each.get(name) for each in carried]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            columns[name] = pa.array([_as_text(value) for value in values], pa.string())
    return pa.table(columns)


def merge_types(schemas: Sequence[pa.Schema]) -> dict[str, pa.DataType]:
    """Return a type for every carried column of several scans: numbers widen, whatever else differs becomes text."""
    found: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            if field.name in _OWN or field.name == "num_occurrences":
                continue
            known = found.get(field.name, pa.null())
            if pa.types.is_null(known) or known == field.type:
                found[field.name] = field.type
            elif not pa.types.is_null(field.type):
                numbers = {pa.int64(), pa.float64()}
                found[field.name] = pa.float64() if {known, field.type} <= numbers else pa.string()
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in found.items()}


def cast_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a carried column in the type that all scans share."""
    if column.type == kind:
        return column
    if kind == pa.string():
        return pa.chunked_array([pa.array([_as_text(value) for value in column.to_pylist()], pa.string())])
    return column.cast(kind)


def identify(brought: Sequence[object], pairs: Sequence[tuple[str, str | None]]) -> tuple[list[str], list[str], bool]:
    """Return uids, the identities of (url, caption), and whether the uids are the source's own (all of them 32 hex characters)."""
    own = [sample_uid(url, caption) for url, caption in pairs]
    texts = [value for value in brought if isinstance(value, str) and is_uid(value)]
    if texts and len(texts) == len(brought):
        return texts, own, True
    return own, own, False


def safe_path(root: Path, name: str, place: str) -> Path:
    """Return `root/name`; raises where the name, or a link on the way, leads out of the folder."""
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name.startswith(("/", "~")) or _DRIVE.match(name) or ".." in parts:
        raise InputError(
            f"{place}: file name {name!r} leads out of {root}; make it relative to that folder, without '..'"
        )
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{place}: {name!r} is a link that leads out of {root}; copy the file into the folder")
    return path


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
