"""Existing tars as shards of a pool, read where they lie: img2dataset's output with its Parquet, or any WebDataset tar."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from curate import jpeg
from curate.fetch.importing_rows import (
    CAPTION_NAMES,
    CAPTIONS_COLUMN,
    URL_NAMES,
    carried_value,
    clean_text,
    find_column,
    identify,
    make_table,
    pool_name,
    split_captions,
)
from curate.images import ImageError, probe
from curate.store import Store
from curate.tar import Member, index_tar, split_name
from schemas.errors import InputError
from schemas.sample import (
    FETCH_COLUMNS,
    IMAGE_SUFFIXES,
    STATUS_FAILED_DOWNLOAD,
    STATUS_FAILED_RESIZE,
    STATUS_SUCCESS,
)

NO_IMAGE = "no image in the tar"
_TEXT_SUFFIXES = ("txt", "text", "caption")
_URL_SUFFIXES = ("url", "url.txt")
_KEPT_SUFFIXES = frozenset(["json", "cls", *_TEXT_SUFFIXES, *_URL_SUFFIXES])
_TRANSPOSED = frozenset([5, 6, 7, 8])


@dataclass(frozen=True, kw_only=True)
class TarColumns:
    """Where captions, URLs and uids are found in JSON members or in the Parquet; empty: by their usual names."""

    url: str = ""
    caption: str = ""
    uid: str = "uid"


def scan_tar(source: Store, path: str, columns: TarColumns) -> pa.Table:
    """Return the rows of a tar: those of the img2dataset Parquet beside it, failures included, or those its members make."""
    table = read_companion(source, path)
    try:
        with source.open_seekable(path) as file:
            members = list(index_tar(file))
            if table is not None:
                return _rows_of_table(table, members, file, path, columns)
            return _rows_of_members(members, file, path, columns)
    except tarfile.ReadError as error:
        raise InputError(
            f"{source.locate(path)}: {error}; download that shard again, or move it (and its .parquet and _stats.json) away"
        ) from error


def read_companion(source: Store, path: str) -> pa.Table | None:
    """Return the Parquet that img2dataset wrote beside a tar, or None where there is none of its kind."""
    companion = f"{path.removesuffix('.tar')}.parquet"
    if not source.exists(companion):
        return None
    table = source.read_table(companion)
    return table if {"key", "status"} <= set(table.column_names) else None


def _rows_of_table(
    table: pa.Table, members: Sequence[Member], file: BinaryIO, path: str, columns: TarColumns
) -> pa.Table:
    pictures = {key: member for key, kind, member in map(_split, members) if kind in IMAGE_SUFFIXES}
    names = table.column_names
    caption_name = find_column(names, columns.caption, ("caption",), flag="caption-column", place=path)
    url_name = find_column(names, columns.url, ("url",), flag="url-column", place=path)
    rows, carried = [], []
    for values in table.to_pylist():
        caption, captions = split_captions(values.get(caption_name) if caption_name else None)
        row = {name: values.get(name) for name, _ in FETCH_COLUMNS}
        row |= {"caption": caption, "url": clean_text(values.get(url_name)) if url_name else None}
        row["url"] = row["url"] or f"{path}/{row['key']}"
        picture = pictures.get(row["key"])
        if row["status"] == STATUS_SUCCESS and picture is None:
            row |= {"status": STATUS_FAILED_DOWNLOAD, "error_message": NO_IMAGE}
        elif (
            picture is not None and row["status"] == STATUS_SUCCESS and (row["sha256"] is None or row["width"] is None)
        ):
            row |= {
                name: value for name, value in _look(file, picture).items() if row[name] is None or name == "status"
            }
        rows.append(row)
        extra = {
            name: values[name] for name in names if name not in row and name not in (columns.uid, "num_occurrences")
        }
        carried.append(_carry(extra, captions))
    brought = table[columns.uid].to_pylist() if columns.uid in names else [None] * len(rows)
    return _finish(rows, carried, brought, columns)


def _rows_of_members(members: Sequence[Member], file: BinaryIO, path: str, columns: TarColumns) -> pa.Table:
    rows: list[dict[str, Any]] = []
    carried: list[dict[str, object]] = []
    brought: list[object] = []
    for key, parts, repeated in _samples(members):
        picture = next((member for kind, member in parts.items() if kind in IMAGE_SUFFIXES), None)
        texts = {kind: _read(file, member) for kind, member in parts.items() if kind in _KEPT_SUFFIXES}
        record = _parse_json(texts.pop("json", None), f"{path}, {key}.json")
        caption, url, values = _fields(record, texts, columns, place=f"{path}, {key}.json")
        text, captions = split_captions(caption)
        row: dict[str, Any] = {"key": key, "caption": text, "exif": None, "error_message": None}
        row["url"] = clean_text(url) or f"{path}/{picture.name if picture else key}"
        if repeated:
            row |= {"status": STATUS_FAILED_DOWNLOAD, "error_message": "the tar has this key twice"}
        elif picture is None:
            row |= {"status": STATUS_FAILED_DOWNLOAD, "error_message": NO_IMAGE}
        else:
            row |= _look(file, picture)
        rows.append(row)
        brought.append(values.pop(columns.uid, None))
        carried.append(_carry(values, captions))
    return _finish(rows, carried, brought, columns)


def _samples(members: Sequence[Member]) -> Iterator[tuple[str, dict[str, Member], bool]]:
    """Yield (key, members by suffix, whether an earlier sample had the key): neighbours with one key make a sample."""
    seen: set[str] = set()
    key, parts = "", dict[str, Member]()
    for member in members:
        name, kind, _ = _split(member)
        if parts and (name != key or kind in parts):
            yield key, parts, key in seen
            seen.add(key)
            parts = {}
        key = name
        parts[kind] = member
    if parts:
        yield key, parts, key in seen


def _split(member: Member) -> tuple[str, str, Member]:
    """Return (key, suffix, member); the key keeps its folders."""
    keys, suffix = split_name(member.name)
    return keys[-1], suffix, member


def _fields(
    record: Mapping[str, object], texts: Mapping[str, bytes], columns: TarColumns, *, place: str
) -> tuple[object, object, dict[str, object]]:
    """Return caption, url and the other values of a sample; a text member goes before the JSON's."""
    names = list(record)
    caption_name = find_column(
        names, columns.caption if columns.caption in record else "", CAPTION_NAMES, flag="", place=place
    )
    url_name = find_column(names, columns.url if columns.url in record else "", URL_NAMES, flag="", place=place)
    caption = record.get(caption_name) if caption_name else None
    url = record.get(url_name) if url_name else None
    text = next((texts[kind] for kind in _TEXT_SUFFIXES if kind in texts), None)
    if text is not None and not isinstance(caption, list) and not columns.caption:
        caption = text
    url = next((texts[kind].strip() for kind in _URL_SUFFIXES if kind in texts), url)
    # What img2dataset wrote of the fetch describes the file; here the file itself is looked at.
    own = {"key", "status", "error_message", "exif", "num_occurrences", caption_name, url_name}
    values = {name: value for name, value in record.items() if name not in own}
    values = {name: value for name, value in values.items() if name not in ("width", "height", "sha256")}
    if "cls" in texts:
        values["cls"] = texts["cls"].strip()
    return caption, url, values


def _look(file: BinaryIO, member: Member) -> dict[str, object]:
    """Return what a picture's bytes say: status, sizes as shown, sha256. The header is read, nothing is decoded."""
    data = _read(file, member)
    found: dict[str, object] = {"sha256": hashlib.sha256(data).hexdigest(), "status": STATUS_SUCCESS}
    try:
        info = probe(data)
    except ImageError as error:
        return {**found, "status": STATUS_FAILED_RESIZE, "error_message": str(error)}
    width, height = info.width, info.height
    if info.format == "jpeg" and jpeg.read_orientation(data) in _TRANSPOSED:
        width, height = height, width
    return {**found, "width": width, "height": height, "original_width": width, "original_height": height}


def _finish(
    rows: Sequence[dict[str, Any]], carried: Sequence[dict[str, object]], brought: Sequence[object], columns: TarColumns
) -> pa.Table:
    uids, pairs, are_own = identify(brought, [(row["url"], row["caption"]) for row in rows])
    for row, uid, pair, values, value in zip(rows, uids, pairs, carried, brought, strict=True):
        row |= {"uid": uid, "pair": pair}
        if not are_own and value is not None:
            values[pool_name(columns.uid)] = carried_value(value)
    return make_table(rows, carried)


def _carry(values: Mapping[str, object], captions: list[str] | None) -> dict[str, object]:
    found = {pool_name(name): carried_value(_decode(value)) for name, value in values.items()}
    return found if captions is None else {**found, CAPTIONS_COLUMN: captions}


def _decode(value: object) -> object:
    return clean_text(value) if isinstance(value, bytes) else value


def _parse_json(data: bytes | None, place: str) -> dict[str, object]:
    if data is None:
        return {}
    try:
        record = json.loads(data.decode("utf-8", "replace"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error}); remove or correct that member") from error
    return record if isinstance(record, dict) else {"json": record}


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
