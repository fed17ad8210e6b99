"""Files that list URLs: Parquet, CSV, TSV, JSONL and txt, local or behind fsspec, read as a stream of Arrow tables.

A row that cannot be read is an error that names file, row and remedy, never a row less: a list that silently shrinks is the one
mistake nobody finds afterwards.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from schemas.errors import InputError

FORMATS = ("parquet", "csv", "tsv", "jsonl", "txt")

_SUFFIXES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
}
_COMPRESSIONS = frozenset([".gz", ".bz2", ".xz", ".zst"])
_BATCH_ROWS = 65_536
_BLOCK_BYTES = 8 * 1024**2
# Lists up to this size are known by their bytes, larger ones by size and time of change: a run that has nothing to do must be quick.
_HASHED_BYTES = 256 * 1024**2
_BOM = b"\xef\xbb\xbf"

Types = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class UrlList:
    """One file of a list: its fsspec path, its format, and how its text is encoded."""

    path: str
    format: str
    encoding: str = "utf-8"

    def identity(self) -> str:
        """Return a digest of the content, or of size and time of change where the file is large."""
        filesystem, path = fsspec.core.url_to_fs(self.path)
        size = filesystem.size(path)
        if size is None or size > _HASHED_BYTES:
            return str(filesystem.ukey(path))
        with filesystem.open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    def read(self, types: Types | None = None) -> Iterator[pa.Table]:
        """Yield the rows; text formats give strings unless `types` names a column's type."""
        readers: dict[str, Callable[[UrlList, Types], Iterator[pa.Table]]] = {
            "parquet": _read_parquet,
            "csv": _read_delimited,
            "tsv": _read_delimited,
            "jsonl": _read_jsonl,
            "txt": _read_txt,
        }
        yield from readers[self.format](self, types or {})


def find_lists(urls: str | Sequence[str], input_format: str = "", encoding: str = "utf-8") -> list[UrlList]:
    """Return the files that paths, folders, globs and fsspec URLs stand for, each argument's in the order of their names."""
    arguments = [urls] if isinstance(urls, str) else list(urls)
    if input_format and input_format not in FORMATS:
        raise InputError(f"input_format is {input_format!r}; use one of {', '.join(FORMATS)}")
    paths = [path for argument in arguments for path in _expand(argument)]
    if not paths:
        raise InputError("no URL list was given; name a Parquet, CSV, TSV, JSONL or txt file")
    return [UrlList(path, input_format or _format_of(path), encoding) for path in paths]


def _expand(argument: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(argument)

    def with_protocol(name: str) -> str:
        return name if "://" not in argument else cast(str, filesystem.unstrip_protocol(name))

    if any(character in path for character in "*?[") and not argument.startswith(("http://", "https://")):
        found = sorted(name for name in filesystem.glob(path) if not filesystem.isdir(name))
        if not found:
            raise InputError(
                f"no file matches {argument!r}; check the pattern (quote it, so that the shell leaves it alone)"
            )
        return [with_protocol(name) for name in found]
    if filesystem.isdir(path):
        found = sorted(name for name in filesystem.ls(path, detail=False) if _suffix_format(name))
        if not found:
            raise InputError(f"{argument} holds no {', '.join(FORMATS)} file")
        return [with_protocol(name) for name in found]
    if not filesystem.exists(path):
        raise InputError(f"URL list {argument!r} does not exist")
    return [argument]


def _suffix_format(path: str) -> str | None:
    suffixes = PurePosixPath(path).suffixes
    while suffixes and suffixes[-1].lower() in _COMPRESSIONS:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1].lower()) if suffixes else None


def _format_of(path: str) -> str:
    found = _suffix_format(path)
    if found is None:
        raise InputError(f"cannot tell the format of {path} from its name; give --input-format ({', '.join(FORMATS)})")
    return found


def _open(source: UrlList) -> BinaryIO:
    return cast(BinaryIO, fsspec.open(source.path, "rb", compression="infer").open())


def _read_parquet(source: UrlList, types: Types) -> Iterator[pa.Table]:
    with _open(source) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
                yield _cast(pa.table(batch), types, source, 0)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{source.path} cannot be read as Parquet: {error}; check that the file is whole"
            ) from error


def _read_txt(source: UrlList, types: Types) -> Iterator[pa.Table]:
    del types
    for _, lines in _text_lines(source):
        yield pa.table({"url": pa.array([line.strip() for _, line in lines], pa.string())})


def _read_jsonl(source: UrlList, types: Types) -> Iterator[pa.Table]:
    for first, lines in _text_lines(source):
        rows = [_parse_json(source, number, line) for number, line in lines]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {}
        for name in names:
            values = [row.get(name) for row in rows]
            try:
                columns[name] = pa.array(values, types.get(name))
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise InputError(
                    f"{source.path}: column {name!r} mixes types in lines {first} to {first + len(rows) - 1} ({error}); "
                    f"give it one type, or leave it out with --extra-columns"
                ) from error
        yield pa.table(columns)


def _parse_json(source: UrlList, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{source.path}:{number} is not JSON ({error}); correct or remove the line") from error
    if not isinstance(row, dict):
        raise InputError(
            f"{source.path}:{number} is a JSON {type(row).__name__}; every line must be an object with a URL"
        )
    return row


def _text_lines(source: UrlList) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Yield batches of numbered non-blank lines, each batch with its first line number."""
    number = 0
    with _open(source) as file:
        while lines := list(islice(file, _BATCH_ROWS)):
            batch = []
            first = number + 1
            for line in lines:
                number += 1
                text = _decode(source, number, line.removeprefix(_BOM) if number == 1 else line)
                if text.strip():
                    batch.append((number, text))
            if batch:
                yield first, batch


def _decode(source: UrlList, number: int, line: bytes) -> str:
    try:
        return line.decode(source.encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source.path}:{number} is not {source.encoding} ({error.reason} at byte {error.start}); "
            "correct the line, or name the file's encoding with --encoding"
        ) from error


def _read_delimited(source: UrlList, types: Types) -> Iterator[pa.Table]:
    names, has_header = _sniff_header(source, _delimiter(source))
    broken: list[pacsv.InvalidRow] = []

    def on_broken_row(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    number = 1 + has_header
    with _open(source) as file:
        reader = _open_reader(source, file, names, has_header, on_broken_row)
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                batch = None
            except pa.ArrowInvalid as error:
                raise InputError(f"{source.path} cannot be read from row {number} on: {error}") from error
            if broken:
                row = broken[0]
                raise InputError(
                    f"{source.path}: row {row.number or number} has {row.actual_columns} columns, expected {row.expected_columns}: "
                    f"{row.text[:200]!r}; correct or remove it"
                )
            if batch is None:
                return
            yield _cast(_to_text(pa.table(batch), source, number), types, source, number)
            number += batch.num_rows


def _open_reader(
    source: UrlList,
    file: BinaryIO,
    names: list[str],
    has_header: bool,
    on_broken_row: Callable[[pacsv.InvalidRow], str],
) -> pacsv.CSVStreamingReader:
    # A headerless TSV is CC3M's kind: raw text, where a quotation mark is a character like any other.
    is_raw = source.format == "tsv" and not has_header
    return pacsv.open_csv(
        file,
        read_options=pacsv.ReadOptions(
            column_names=names,
            skip_rows=int(has_header),
            use_threads=False,
            block_size=_BLOCK_BYTES,
            encoding=source.encoding,
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=_delimiter(source),
            quote_char=False if is_raw else '"',
            double_quote=not is_raw,
            newlines_in_values=not is_raw,
            invalid_row_handler=on_broken_row,
        ),
        convert_options=pacsv.ConvertOptions(
            # Bytes, because a check by Arrow would not say which row; and no null but the empty field: "NA" is a caption.
            column_types=dict.fromkeys(names, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _delimiter(source: UrlList) -> str:
    return "\t" if source.format == "tsv" else ","


def _to_text(table: pa.Table, source: UrlList, first_row: int) -> pa.Table:
    columns = {}
    for name in table.column_names:
        try:
            columns[name] = table[name].cast(pa.string())
        except pa.ArrowInvalid:
            for row, value in enumerate(table[name].to_pylist()):
                _decode(source, first_row + row, value or b"")
            raise
    return pa.table(columns)


def _sniff_header(source: UrlList, delimiter: str) -> tuple[list[str], bool]:
    """Return the column names, and whether the file's first line gives them."""
    with _open(source) as file:
        start = file.read(1024**2)
    text = start.removeprefix(_BOM).decode(source.encoding, "replace")
    first = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
    if not first:
        raise InputError(f"{source.path} is empty; a list needs at least one row")
    addresses = [
        index for index, value in enumerate(first) if value.lstrip().lower().startswith(("http://", "https://"))
    ]
    if not addresses:
        doubled = {name for name in first if first.count(name) > 1}
        if doubled:
            raise InputError(f"{source.path} has the column {sorted(doubled)[0]!r} twice; rename one")
        return first, True
    # CC3M has the caption first and the URL second, other lists the other way round.
    if len(first) > 2 or len(addresses) > 1:
        raise InputError(f"{source.path} has {len(first)} columns and no header; add a first line that names them")
    return [("url" if index == addresses[0] else "caption") for index in range(len(first))], False


def _cast(table: pa.Table, types: Types, source: UrlList, first_row: int) -> pa.Table:
    for name, kind in types.items():
        if name in table.column_names and table[name].type != kind:
            try:
                column = table[name].cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(f"{source.path}: column {name!r} near row {first_row}: {error}") from error
            table = table.set_column(table.column_names.index(name), name, column)
    return table


def infer_text_type(column: pa.ChunkedArray) -> pa.DataType:
    """Return int64, double, bool or string, whichever is the narrowest that holds every value of a text column; null where all are null."""
    values = pc.drop_null(column)
    if len(values) == 0:
        return pa.null()
    # A leading zero or plus makes it a code, not a number.
    if pc.any(pc.match_substring_regex(values, r"^([+]|-?0\d)|^\s|\s$")).as_py():
        return pa.string()
    for kind, pattern in (
        (pa.int64(), r"^-?\d{1,18}$"),
        (pa.float64(), r"^-?\d+\.?\d*([eE][+-]?\d+)?$"),
        (pa.bool_(), r"^(?i:true|false)$"),
    ):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return kind
    return pa.string()


def merge_types(name: str, left: pa.DataType, right: pa.DataType, *, is_text: bool) -> pa.DataType:
    """Return the type that holds both; text falls back to string, typed files that disagree are an error."""
    if left == right or pa.types.is_null(right):
        return left
    if pa.types.is_null(left):
        return right
    if is_text:
        return pa.float64() if {left, right} == {pa.int64(), pa.float64()} else pa.string()
    try:
        schemas = [pa.schema([(name, left)]), pa.schema([(name, right)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"column {name!r} is {left} in one part of the list and {right} in another; give it one type, "
            "or leave it out with --extra-columns"
        ) from error
