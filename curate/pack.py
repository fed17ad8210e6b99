"""One shard of a dataset: reads the selected samples of a few pool shards and writes a tar with its sidecar, or a sidecar alone.

Everything here is a function of a plan and a range of the selection, so a unit that runs twice writes the same bytes twice.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import images
from curate.blur import blur_boxes
from curate.store import LabelTarget, Pool, Store
from curate.tar import Member, TarWriter, index_tar, split_name
from schemas.dataset import SIDECAR_COLUMNS, ShardEntry
from schemas.errors import StaleDatasetError
from schemas.sample import IMAGE_SUFFIXES, STATUS_SUCCESS, sample_key, shard_name
from schemas.selection import SELECTED_FILE

FINGERPRINT_KEY = b"winnow.fingerprint"
TAR_BYTES_KEY = b"winnow.tar_bytes"
TAR_SHA256_KEY = b"winnow.tar_sha256"

# What stock readers call these formats.
_SUFFIXES = {"jpeg": "jpg", "tif": "tiff"}
_JSON_NUMBERS = ("width", "height", "original_width", "original_height")
# Columns of a shard that the JSON has in its own way, or that say nothing about a picture that is there.
_NOT_CARRIED = frozenset([*_JSON_NUMBERS, "uid", "url", "caption", "key", "sha256", "status", "error_message", "exif"])
_REMOTE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What every unit of a build needs to know."""

    pool: Pool
    out: Store
    folder: str  # of the dataset, relative to `out`
    selection: str  # folder of the selection, relative to the pool
    fingerprint: str
    captions: Mapping[str, str]  # sidecar column -> sample column or label.column; the first is written to KEY.txt
    labels: Mapping[str, LabelTarget]
    samples_per_shard: int
    image_format: str | None = None  # re-encode pictures of other formats
    blur: str = ""  # label.column of the boxes to blur
    list_lengths: Mapping[str, int] = field(default_factory=dict)  # most texts of one sample, by list caption
    carried: Sequence[str] = ()  # text columns of the pool that KEY.json has as well, empty where a shard lacks them
    columns: Mapping[str, str] = field(default_factory=dict)  # sidecar column -> label.column or column of the pool


@dataclass(frozen=True)
class PackUnit:
    """One shard to write: rows `start` to `stop` (exclusive) of the selection; `shard` names its files."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a unit will hold: pictures by suffix, the most texts that one sample has in each list caption, carried text columns."""

    suffixes: Counter[str]
    list_lengths: dict[str, int]
    carried: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    uid: str
    weight: float
    row: Mapping[str, Any]  # of the shard's Parquet
    captions: Mapping[str, str | list[str]]
    image: Member
    suffix: str
    others: Mapping[str, Member]  # json and txt
    boxes: Sequence[Sequence[float]] = ()  # to be blurred


@dataclass(frozen=True)
class _Sidecar:
    """The rows of a sidecar by column, and the columns carried along, of the same rows in the same order."""

    rows: Mapping[str, list[Any]]
    columns: Sequence[pa.Table]


def survey(plan: PackPlan, unit: PackUnit) -> Survey:
    """Look at a unit's samples without reading a picture."""
    suffixes: Counter[str] = Counter()
    lengths: dict[str, int] = {}
    carried: set[str] = set()
    for samples, _, _ in _read_samples(plan, unit):
        for sample in samples:
            suffixes[_SUFFIXES.get(sample.suffix, sample.suffix)] += 1
            carried.update(sample.row.keys() - _NOT_CARRIED)
            for name, texts in sample.captions.items():
                if isinstance(texts, list):
                    lengths[name] = max(lengths.get(name, 0), len(texts))
    return Survey(suffixes=suffixes, list_lengths=lengths, carried=frozenset(carried))


def pack(plan: PackPlan, unit: PackUnit) -> ShardEntry:
    """Write a unit's tar, then its sidecar, whose existence says that both are whole."""
    name = shard_name(unit.shard)
    rows: dict[str, list[Any]] = {column: [] for column, _ in SIDECAR_COLUMNS} | {
        column: [] for column in plan.captions
    }
    columns: list[pa.Table] = []
    with plan.out.commit(f"{plan.folder}/{name}.tar") as file:
        hashing = _HashingFile(file)
        writer = TarWriter(hashing)  # type: ignore[arg-type]  # it only writes
        for samples, tar, carried in _read_samples(plan, unit):
            columns.append(carried)
            for sample in samples:
                _pack_sample(plan, unit, sample, tar, writer, rows)
        writer.close()
    sidecar = _Sidecar(rows, columns)
    return _commit_sidecar(plan, unit, sidecar, f"{name}.tar", writer.position, hashing.digest.hexdigest())


def view(plan: PackPlan, unit: PackUnit) -> ShardEntry:
    """Write the sidecar of a pool shard's selected samples, which stay in the pool's own tar."""
    rows: dict[str, list[Any]] = {column: [] for column, _ in SIDECAR_COLUMNS} | {
        column: [] for column in plan.captions
    }
    columns: list[pa.Table] = []
    for samples, _, carried in _read_samples(plan, unit):
        columns.append(carried)
        for sample in samples:
            members = {"image": sample.image, **sample.others}
            _add_row(
                rows, sample, str(sample.row["key"]), sample.suffix, {n: (m.offset, m.size) for n, m in members.items()}
            )
    path = plan.pool.shard_tar(plan.pool.shard_header(unit.shard))
    digest = hashlib.sha256()
    with plan.pool.open(path) as file:
        while chunk := file.read(_REMOTE_BYTES):
            digest.update(chunk)
        tar_bytes = file.tell()
    sidecar = _Sidecar(rows, columns)
    return _commit_sidecar(plan, unit, sidecar, plan.pool.locate(path), tar_bytes, digest.hexdigest())


def read_entry(plan: PackPlan, unit: PackUnit, tar: str) -> ShardEntry | None:
    """Return the entry of a shard that an earlier run has finished, or None."""
    path = f"{plan.folder}/{shard_name(unit.shard)}.parquet"
    if not plan.out.exists(path):
        return None
    footer = plan.out.read_footer(path)
    metadata: Mapping[bytes, bytes] = footer.metadata or {}
    location = tar if "/" in tar else f"{plan.folder}/{tar}"
    if metadata.get(FINGERPRINT_KEY, b"").decode() != plan.fingerprint or footer.num_rows != unit.stop - unit.start:
        return None
    if not plan.out.exists(location) or plan.out.num_bytes(location) != int(metadata[TAR_BYTES_KEY]):
        return None
    data = plan.out.read_bytes(path)
    # A takedown between two attempts moves the rows of a selection, and leaves its identity as it is.
    selected = read_selected(plan.pool, plan.selection, unit.start, unit.stop)
    if not pq.read_table(pa.BufferReader(data), columns=["uid"])["uid"].equals(selected["uid"]):
        return None
    return ShardEntry(
        tar=tar,
        parquet=f"{shard_name(unit.shard)}.parquet",
        num_samples=footer.num_rows,
        tar_bytes=int(metadata[TAR_BYTES_KEY]),
        tar_sha256=metadata[TAR_SHA256_KEY].decode(),
        parquet_sha256=hashlib.sha256(data).hexdigest(),
    )


def caption_key(column: str) -> str:
    """Return the name of a caption column in KEY.json: `alt_text` is img2dataset's `caption`, and dots are left to file names."""
    return "caption" if column == "alt_text" else column.replace(".", "_")


def read_selected(pool: Pool, selection: str, start: int, stop: int) -> pa.Table:
    """Return the kept rows `start` to `stop` (exclusive) of the selection in a folder of the pool."""
    with pool.open(f"{selection}/{SELECTED_FILE}") as file:
        parquet = pq.ParquetFile(file)
        first, parts = 0, [parquet.schema_arrow.empty_table()]
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            low, high = max(start - first, 0), min(stop - first, num_rows)
            if low < high:
                parts.append(parquet.read_row_group(group).slice(low, high - low))
            first += num_rows
        return pa.concat_tables(parts)


class _HashingFile:
    """Digests what is written on its way to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _pack_sample(
    plan: PackPlan, unit: PackUnit, sample: _Sample, tar: BinaryIO, writer: TarWriter, rows: dict[str, list[Any]]
) -> None:
    key = sample_key(unit.shard, len(rows["uid"]), plan.samples_per_shard)
    tar.seek(sample.image.offset)
    data, suffix = tar.read(sample.image.size), _SUFFIXES.get(sample.suffix, sample.suffix)
    if len(data) != sample.image.size:
        raise StaleDatasetError(
            f"sample {sample.uid}: its tar ends inside {sample.image.name}; bring the shard in again"
        )
    record = _make_record(plan, sample, key)
    wanted = plan.image_format or suffix
    if suffix != wanted or sample.boxes:
        try:
            data = images.encode(blur_boxes(images.decode(data), sample.boxes), wanted)
        except images.ImageError as error:
            raise StaleDatasetError(
                f"sample {sample.uid} ({sample.image.name}) cannot be converted to {wanted}: {error}; "
                "drop such rows with a rule on image_stats.error"
            ) from error
        suffix = wanted
        record["sha256"] = hashlib.sha256(data).hexdigest()
    text = _primary_text(sample.captions).encode()
    members = {"image": (suffix, data), "json": ("json", json.dumps(record, indent=4).encode()), "txt": ("txt", text)}
    # img2dataset's order: the image, then the others; the members of a sample are neighbours.
    places = {name: (writer.add(f"{key}.{kind}", body), len(body)) for name, (kind, body) in members.items()}
    _add_row(rows, sample, key, suffix, places)


def _make_record(plan: PackPlan, sample: _Sample, key: str) -> dict[str, object]:
    """Return KEY.json: the same keys with values of the same types in every sample, so that readers that infer types agree."""
    row = sample.row
    record: dict[str, object] = {"uid": sample.uid}
    record |= {name: row.get(name) or "" for name in plan.carried}
    record["caption"] = row["caption"] or ""
    for column, value in sample.captions.items():
        if isinstance(value, list):
            texts = [*value, *[""] * (plan.list_lengths.get(column, 0) - len(value))]
            record |= {f"{caption_key(column)}_{index}": text for index, text in enumerate(texts)}
        else:
            record[caption_key(column)] = value
    record |= {"url": row["url"] or "", "key": key}
    record |= {name: row[name] or 0 for name in _JSON_NUMBERS}
    record["sha256"] = row["sha256"] or ""
    return record


def _primary_text(captions: Mapping[str, str | list[str]]) -> str:
    for value in captions.values():
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text.strip():
                return text
    return ""


def _add_row(
    rows: dict[str, list[Any]], sample: _Sample, key: str, suffix: str, places: Mapping[str, tuple[int, int]]
) -> None:
    values = {"uid": sample.uid, "key": key, "url": sample.row["url"], "weight": sample.weight, "image_suffix": suffix}
    for name in ("image", "json", "txt"):
        values[f"{name}_offset"], values[f"{name}_bytes"] = places.get(name, (None, None))
    for name, value in {**values, **sample.captions}.items():
        rows[name].append(value)


def _commit_sidecar(
    plan: PackPlan, unit: PackUnit, sidecar: _Sidecar, tar: str, tar_bytes: int, tar_sha256: str
) -> ShardEntry:
    kinds = dict(SIDECAR_COLUMNS)
    for column in plan.captions:
        is_list = column in plan.list_lengths
        kinds[column] = pa.list_(pa.string()) if is_list else pa.string()
    metadata = {
        FINGERPRINT_KEY: plan.fingerprint.encode(),
        TAR_BYTES_KEY: str(tar_bytes).encode(),
        TAR_SHA256_KEY: tar_sha256.encode(),
    }
    table = pa.table({name: pa.array(sidecar.rows[name], kind) for name, kind in kinds.items()})
    carried = pa.concat_tables(sidecar.columns, promote_options="permissive")
    for name in carried.column_names:
        table = table.append_column(name, carried[name])
    table = table.replace_schema_metadata(metadata)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    data = buffer.getvalue().to_pybytes()
    name = f"{shard_name(unit.shard)}.parquet"
    # The tar came before: a sidecar on disk means that its tar is whole.
    plan.out.commit_bytes(f"{plan.folder}/{name}", data)
    return ShardEntry(
        tar=tar,
        parquet=name,
        num_samples=table.num_rows,
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        parquet_sha256=hashlib.sha256(data).hexdigest(),
    )


def _read_samples(plan: PackPlan, unit: PackUnit) -> Iterator[tuple[Iterator[_Sample], BinaryIO, pa.Table]]:
    """Yield, pool shard by pool shard, the unit's samples with the open tar that holds them and the columns carried along."""
    selected = read_selected(plan.pool, plan.selection, unit.start, unit.stop)
    shards = selected["shard"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    for start, stop in itertools.pairwise(starts):
        if start < stop:
            part = selected.slice(start, stop - start)
            header = plan.pool.shard_header(int(shards[start]))
            with plan.pool.open_seekable(plan.pool.shard_tar(header)) as tar:
                yield _read_shard(plan, part, tar), tar, _read_columns(plan, part)


def _read_shard(plan: PackPlan, selected: pa.Table, tar: BinaryIO) -> Iterator[_Sample]:
    shard = selected["shard"][0].as_py()
    places: npt.NDArray[np.int32] = selected["row"].to_numpy()
    table = plan.pool.read_table(plan.pool.shard_parquet(shard))
    uids = selected["uid"].to_pylist()
    name = plan.pool.locate(plan.pool.shard_parquet(shard))
    if places.max() >= table.num_rows:
        raise StaleDatasetError(f"{name} has fewer rows than when the selection was made; run `winnow select` again")
    captions = {column: _read_captions(plan, source, shard, table, places) for column, source in plan.captions.items()}
    boxes = _read_boxes(plan, shard, table, places)
    texts = [column.name for column in table.schema if pa.types.is_string(column.type)]
    taken = table.select([*texts, *_JSON_NUMBERS]).take(pa.array(places)).to_pylist()
    members = index_members(tar)
    weights = selected["weight"].to_pylist()
    for index, (uid, row) in enumerate(zip(uids, taken, strict=True)):
        if row["uid"] != uid or row["status"] != STATUS_SUCCESS:
            raise StaleDatasetError(
                f"{name} row {places[index]} is no longer sample {uid} that the selection chose; run `winnow select` again"
            )
        found = members.get(row["key"], {})
        if "image" not in found:
            raise StaleDatasetError(
                f"the tar of shard {shard_name(shard)} has no picture {row['key']!r}, which {name} says it has; bring the shard in again"
            )
        image, suffix = found["image"]
        yield _Sample(
            uid=uid,
            weight=weights[index],
            row=row,
            captions={column: texts[index] for column, texts in captions.items()},
            image=image,
            suffix=suffix,
            others={kind: found[kind][0] for kind in ("json", "txt") if kind in found},
            boxes=boxes[index] if boxes else (),
        )


def _read_captions(
    plan: PackPlan, source: str, shard: int, table: pa.Table, places: npt.NDArray[np.int32]
) -> Sequence[str | list[str]]:
    _, dot, column = source.rpartition(".")
    values = (
        _read_annotation(plan, source, shard, table) if dot else table["caption" if column == "alt_text" else column]
    )
    texts = values.take(pa.array(places)).to_pylist()
    if pa.types.is_list(values.type):
        return [[text or "" for text in value or []] for value in texts]
    return [text or "" for text in texts]


def _read_columns(plan: PackPlan, selected: pa.Table) -> pa.Table:
    """Return the columns that the sidecar carries along for the selected rows of one shard."""
    shard = selected["shard"][0].as_py()
    table = plan.pool.read_table(plan.pool.shard_parquet(shard)) if plan.columns else pa.table({})
    columns = {}
    for name, source in plan.columns.items():
        values = _read_annotation(plan, source, shard, table) if "." in source else table[source]
        columns[name] = values.take(selected["row"])
    return pa.table(columns)


def _read_annotation(plan: PackPlan, source: str, shard: int, table: pa.Table) -> pa.ChunkedArray:
    """Return an annotation's column, `label.column`, in the order of the shard's rows."""
    label, _, column = source.rpartition(".")
    target = plan.labels[label]
    path = plan.pool.annotation_path(target.operator, target.fingerprint, shard)
    if not plan.pool.exists(path):
        raise StaleDatasetError(f"{plan.pool.locate(path)} is gone, from which {source} was selected; annotate again")
    annotation = plan.pool.read_table(path, ["uid", column])
    values = annotation[column]
    if not annotation["uid"].equals(table["uid"]):
        values = values.take(pc.index_in(table["uid"], value_set=annotation["uid"].combine_chunks()))
    return values


def _read_boxes(plan: PackPlan, shard: int, table: pa.Table, places: npt.NDArray[np.int32]) -> list[list[list[float]]]:
    """Return the boxes to blur of each selected row; nothing where nothing is to be blurred."""
    if not plan.blur:
        return []
    boxes: list[list[list[float]] | None] = (
        _read_annotation(plan, plan.blur, shard, table).take(pa.array(places)).to_pylist()
    )
    for place, found in zip(places.tolist(), boxes, strict=True):
        # A picture that was not looked at may show anything.
        if found is None:
            raise StaleDatasetError(
                f"shard {shard_name(shard)} row {place} has no {plan.blur}: it could not be looked at; drop such rows with the rule "
                f"{plan.blur} IS NOT NULL"
            )
    return [found for found in boxes if found is not None]


def index_members(tar: BinaryIO) -> dict[str, dict[str, tuple[Member, str]]]:
    """Return the members by key (with its folder and without) and kind: image, json, txt; the first of each counts."""
    found: dict[str, dict[str, tuple[Member, str]]] = {}
    for member in index_tar(tar):
        keys, suffix = split_name(member.name)
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind in ("image", "json", "txt"):
            for key in keys:
                found.setdefault(key, {}).setdefault(kind, (member, suffix))
    return found
