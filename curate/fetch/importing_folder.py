"""Loose pictures as shards of a pool: a folder with a table of captions, one with a text file per picture, or a saved `datasets` folder.

Here pictures are copied into new tars, byte for byte; each is decoded once, so that a broken file becomes a row with an error.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.fetch.config import DownloadConfig
from curate.fetch.importing_rows import (
    CAPTION_NAMES,
    CAPTIONS_COLUMN,
    FILE_NAMES,
    URL_NAMES,
    carried_value,
    clean_text,
    find_column,
    identify,
    make_table,
    pool_name,
    safe_path,
    split_captions,
)
from curate.fetch.lists import UrlList, infer_text_type
from curate.fetch.refusal import REFUSED
from curate.fetch.transform import Transformed, failed_download, transform
from curate.fetch.writer import ShardCounts, build_table
from curate.forgotten import PLANNED_COLUMNS, bury, read_forgotten
from curate.images import probe
from curate.store import Pool
from curate.tar import TarWriter
from schemas.errors import InputError
from schemas.sample import IMAGE_SUFFIXES, STATUS_FAILED_RESIZE, STATUS_SUCCESS, shard_name

TABLE_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_PREFERRED_TABLES = ("metadata", "captions")
NOT_FOUND = "file not found"
# The decode is only a check: the bytes stay as they are.
_AS_STORED = DownloadConfig(keep_original=True, resize_mode="no")
_MAX_FILE_BYTES = 256 << 20
_FORMAT_SUFFIXES = {"jpeg": "jpg"}


@dataclass(frozen=True, kw_only=True)
class FolderColumns:
    """Column names of the table; empty: by their usual names."""

    file: str = ""
    url: str = ""
    caption: str = ""
    uid: str = "uid"


def find_table(root: Path, name: str) -> Path | None:
    """Return the table of captions in a folder: the one named, `metadata.*`, `captions.*`, or the only one; None where there is none."""
    if name:
        path = safe_path(root, name, "--table")
        if not path.is_file() or path.suffix.lower() not in TABLE_FORMATS:
            raise InputError(f"--table {name!r} is not a {', '.join(TABLE_FORMATS)} file in {root}")
        return path
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_FORMATS and path.is_file())
    for stem in _PREFERRED_TABLES:
        preferred = [path for path in found if path.stem.lower() == stem]
        if len(preferred) == 1:
            return preferred[0]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{root} holds several tables: {names}; name the one with the captions with --table")
    return found[0] if found else None


def scan_table(root: Path, path: Path, columns: FolderColumns) -> Iterator[pa.Table]:
    """Yield the rows of a table of captions, batch by batch; paths are checked, pictures are not opened."""
    listed = UrlList(str(path), TABLE_FORMATS[path.suffix.lower()])
    first = 1
    for table in listed.read():
        if listed.format in ("csv", "tsv"):
            table = _infer(table)
        place = f"{path}"
        file_name = find_column(table.column_names, columns.file, FILE_NAMES, flag="file-column", place=place)
        if file_name is None:
            raise InputError(
                f"{path} has no column of file names ({', '.join(FILE_NAMES)}); it has {', '.join(table.column_names)}; "
                "name it with --file-column"
            )
        rows = [{**row, file_name: _file_text(row[file_name])} for row in table.to_pylist()]
        for number, row in enumerate(rows, first):
            if not row[file_name]:
                raise InputError(f"{path}, row {number}: no file name in {file_name!r}; fill it in or remove the row")
            safe_path(root, row[file_name], f"{path}, row {number}")
        first += len(rows)
        yield _scan_rows(rows, [row[file_name] for row in rows], [None] * len(rows), columns, {file_name}, place)


def scan_texts(root: Path) -> Iterator[pa.Table]:
    """Yield the pictures of a folder and its folders, in order of their names, each with the text file of its own name."""
    files = sorted(
        path for path in root.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES and path.is_file()
    )
    if not files:
        raise InputError(f"{root} holds no tars, no pictures and no `datasets` files; give the folder that holds them")
    rows = []
    for path in files:
        name = path.relative_to(root).as_posix()
        safe_path(root, name, str(root))
        text = path.with_suffix(".txt")
        if text.is_file():
            safe_path(root, text.relative_to(root).as_posix(), str(root))
        rows.append({"caption": clean_text(text.read_bytes()) if text.is_file() else None})
    names = [path.relative_to(root).as_posix() for path in files]
    yield _scan_rows(rows, names, [None] * len(rows), FolderColumns(caption="caption"), set(), str(root))


def find_dataset_files(root: Path) -> list[Path]:
    """Return the Arrow or Parquet files of a saved Hugging Face dataset, all splits, in order of their names; empty where it is none."""
    arrow = sorted(root.rglob("*.arrow")) if any(root.rglob("dataset_info.json")) or any(root.glob("*.arrow")) else []
    # `cache-*.arrow` files are left-overs of map and filter, not rows of the dataset.
    arrow = [path for path in arrow if not path.name.startswith("cache-")]
    if arrow:
        return arrow
    parquet = sorted(root.rglob("*.parquet"))
    return [path for path in parquet if _image_column(pq.read_schema(path)) is not None]


def scan_dataset(root: Path, path: Path, columns: FolderColumns) -> Iterator[pa.Table]:
    """Yield the rows of one file of a `datasets` folder; the picture is the column of {bytes, path}."""
    name = path.relative_to(root).as_posix()
    safe_path(root, name, str(root))
    first = 0
    schema = _schema(path)
    if _image_column(schema) is None:
        raise InputError(
            f"{path} has no column of pictures (a struct of bytes and path); save the dataset with its images"
        )
    others = [column for column in schema.names if _image_column(schema, column) is None]
    for batch in _batches(path, others):
        rows = batch.select(others).to_pylist() if others else [{}] * batch.num_rows
        places = list(range(first, first + len(rows)))
        found = _scan_rows(rows, [name] * len(rows), places, columns, set(), str(path))
        yield found
        first += len(rows)


def write_copies(pool: Pool, rows_path: str, root: str, shard: int, shard_size: int) -> ShardCounts:
    """Copy the pictures of planned rows into a new shard: tar, `_stats.json`, and last its Parquet."""
    started = time.time()
    rows = pool.read_table(rows_path)
    results: list[Transformed] = []
    suffixes: list[str] = []
    images = _read_images(Path(root), rows)
    forgotten = read_forgotten(pool)
    names = zip(rows["uid"].to_pylist(), rows["url"].to_pylist(), strict=True)
    # Pass one looks, pass two writes: the sizes in KEY.json come before the next picture, and no picture stays in memory.
    for (uid, url), data in zip(names, images, strict=True):
        result = _check(data)
        if url is None or forgotten.names(uid, url, result.sha256):
            result = REFUSED
        results.append(result)
        suffixes.append(_suffix(data) if isinstance(data, bytes) and result.status == STATUS_SUCCESS else "")
    table = build_table(shard, rows.drop_columns(["pair", "source_file_", "source_row_"]), results, shard_size)
    with pool.commit(f"shards/{shard_name(shard)}.tar") as file:
        writer = TarWriter(file)
        places = pool.read_table(rows_path, ["source_file_", "source_row_"])
        for row, suffix, data in zip(table.to_pylist(), suffixes, _read_images(Path(root), places), strict=True):
            if suffix:
                assert isinstance(data, bytes)
                writer.add(f"{row['key']}.{suffix}", data)
                writer.add(f"{row['key']}.json", json.dumps(row, indent=4, default=str).encode())
                writer.add(f"{row['key']}.txt", (row["caption"] or "").encode())
        writer.close()
    counts = ShardCounts.of(results)
    pool.commit_bytes(f"shards/{shard_name(shard)}_stats.json", _stats(results, counts, started))
    pool.commit_table(pool.shard_parquet(shard), table)
    is_refused = np.array([result is REFUSED for result in results], dtype=bool)
    if is_refused.any():
        pool.commit_table(rows_path, bury(rows, is_refused, keep=PLANNED_COLUMNS))
    return counts


def _scan_rows(
    rows: Sequence[Mapping[str, Any]],
    files: Sequence[str],
    places: Sequence[int | None],
    columns: FolderColumns,
    used: set[str],
    place: str,
) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    caption_name = find_column(names, columns.caption, CAPTION_NAMES, flag="caption-column", place=place)
    url_name = find_column(names, columns.url, URL_NAMES, flag="url-column", place=place)
    taken = {*used, caption_name, url_name, columns.uid, "num_occurrences"}
    made: list[dict[str, Any]] = []
    carried: list[dict[str, object]] = []
    for row, file, number in zip(rows, files, places, strict=True):
        caption, captions = split_captions(row.get(caption_name) if caption_name else None)
        url = clean_text(row.get(url_name)) if url_name else None
        local = file if number is None else f"{file}#{number}"
        made.append({"caption": caption, "url": url or local, "source_file_": file, "source_row_": number})
        values = {pool_name(name): carried_value(row.get(name)) for name in names if name not in taken}
        carried.append(values if captions is None else {**values, CAPTIONS_COLUMN: captions})
    brought = [row.get(columns.uid) for row in rows]
    uids, pairs, are_own = identify(brought, [(str(row["url"]), row["caption"]) for row in made])
    for row, uid, pair, values, value in zip(made, uids, pairs, carried, brought, strict=True):
        row |= {"uid": uid, "pair": pair}
        if not are_own and value is not None:
            values[pool_name(columns.uid)] = carried_value(value)
    return make_table(made, carried)


def _file_text(value: object) -> str:
    return "" if value is None else str(value).removeprefix("./")


def _infer(table: pa.Table) -> pa.Table:
    kinds = {name: infer_text_type(table[name]) for name in table.column_names}
    columns = {
        name: table[name] if kind in (pa.string(), pa.null()) else table[name].cast(kind)
        for name, kind in kinds.items()
    }
    return pa.table(columns)


def _image_column(schema: pa.Schema, name: str = "") -> str | None:
    for field in schema:
        if (
            name in ("", field.name)
            and pa.types.is_struct(field.type)
            and "bytes" in {part.name for part in field.type}
        ):
            return str(field.name)
    return None


def _schema(path: Path) -> pa.Schema:
    if path.suffix == ".parquet":
        return pq.read_schema(path)
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_stream(source).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).schema


def _batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=256, columns=columns)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
            return
        yield from reader


def _read_images(root: Path, rows: pa.Table) -> Iterator[bytes | str]:
    """Yield every row's file, or the message that says why there is none; rows of one `datasets` file are neighbours."""
    files, places = rows["source_file_"].to_pylist(), rows["source_row_"].to_pylist()
    current = ""
    stream: Iterator[tuple[int, bytes | str]] = iter(())
    for file, place in zip(files, places, strict=True):
        if place is None:
            yield _read_file(safe_path(root, file, str(root)))
            continue
        if file != current:
            current, stream = file, _stored_images(root, file, place)
        for number, stored in stream:
            if number == place:
                yield stored
                break


def _stored_images(root: Path, file: str, first: int) -> Iterator[tuple[int, bytes | str]]:
    """Yield (row, picture) of a `datasets` file from the batch that holds row `first` on."""
    path = safe_path(root, file, str(root))
    image = _image_column(_schema(path))
    assert image is not None, "the scan has found it"
    number = 0
    for batch in _batches(path, [image]):
        if number + batch.num_rows <= first:
            number += batch.num_rows
            continue
        for stored in batch.column(image).to_pylist():
            yield number, _stored_image(root, file, stored)
            number += 1


def _stored_image(root: Path, file: str, stored: Mapping[str, Any] | None) -> bytes | str:
    data = (stored or {}).get("bytes")
    if isinstance(data, bytes):
        return data
    path = (stored or {}).get("path")
    if not path:
        return NOT_FOUND
    try:
        return _read_file(safe_path((root / file).parent, str(path), file))
    except InputError as error:
        return str(error)


def _read_file(path: Path) -> bytes | str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return f"file of more than {_MAX_FILE_BYTES} bytes"
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return NOT_FOUND
    except (IsADirectoryError, PermissionError) as error:
        return f"file cannot be read: {error.strerror}"


def _check(data: bytes | str) -> Transformed:
    if isinstance(data, str):
        return failed_download(data)
    result = transform(data, None, _AS_STORED)
    if result.status == STATUS_SUCCESS and _suffix(data) not in IMAGE_SUFFIXES:
        return Transformed(
            STATUS_FAILED_RESIZE, f"Image decoding error: {_suffix(data)} is no format that a shard may hold"
        )
    return Transformed(**{**_fields(result), "image": b""})


def _fields(result: Transformed) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Transformed.__slots__}


def _suffix(data: bytes) -> str:
    kind = probe(data).format
    return _FORMAT_SUFFIXES.get(kind, kind)


def _stats(results: Sequence[Transformed], counts: ShardCounts, started: float) -> bytes:
    statuses = Counter(result.status for result in results)
    ended = time.time()
    content = {
        "count": counts.num_rows,
        "successes": counts.num_successes,
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "duration": ended - started,
        "start_time": started,
        "end_time": ended,
        "status_dict": counts.messages,
    }
    return json.dumps(content, indent=4).encode()
