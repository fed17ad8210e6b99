"""Parquet with the pictures in it, as the Hub's viewer and `datasets` read it: `image` is a struct of the file's bytes and its name.

The types of the columns are in the files too, under the key `huggingface`, so `load_dataset("parquet", ...)` decodes the pictures.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.executor import Executor
from curate.store import Store
from pipelines.export.source import DatasetSource, name_columns
from pipelines.export.target import ExportReport, Files, Part, Target, split_evenly, write_file
from pipelines.export.tars import caption_columns, read_member
from schemas.dataset import SIDECAR_COLUMNS
from schemas.progress import Progress

FORMAT = "parquet"
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Rows that a reader must fetch to show one: few, because each has a picture.
_GROUP_ROWS = 100
_OWN = ("uid", "url", "weight")


def export(
    source: DatasetSource, out: str, *, executor: Executor, progress: Progress, shard_size: int = 5_000
) -> ExportReport:
    """Write a dataset to Parquet files of at most `shard_size` samples in the folder `out`."""
    target = Target(out, FORMAT, {**source.identity(), "shard_size": shard_size})
    if found := target.find():
        return found
    write_parquet(target, source, shard_size, "", executor, progress)
    return target.publish(source.name, source.num_samples)


def write_parquet(
    target: Target, source: DatasetSource, shard_size: int, prefix: str, executor: Executor, progress: Progress
) -> list[dict[str, Any]]:
    """Write the files `<prefix>train-00000-of-00004.parquet`; return each one's result, with its size in memory as `memory_bytes`."""
    parts = split_evenly(source.num_samples, shard_size)
    schema = make_schema(source)
    return target.run(partial(_write, source, schema, prefix, len(parts)), parts, executor, progress)


def make_schema(source: DatasetSource) -> pa.Schema:
    """Return the columns: the picture, the captions (dots in names become underscores), uid, url, weight, and what the sidecars carry."""
    sidecar = source.read(source.index.shards[0]).schema
    fields = [pa.field("image", IMAGE_TYPE)]
    names = [*caption_columns(source), *_OWN]
    names += [name for name in sidecar.names if name not in {*names, *dict(SIDECAR_COLUMNS)}]
    sources = name_columns(names)
    fields += [pa.field(name, _plain(sidecar.field(source).type)) for name, source in sources.items()]
    features = {field.name: describe_feature(field) for field in fields}
    return pa.schema(
        fields,
        metadata={"huggingface": json.dumps({"info": {"features": features}}), "winnow.sources": json.dumps(sources)},
    )


def describe_feature(field: pa.Field) -> dict[str, object]:
    """Return a column's type as `datasets` writes it."""
    if field.type == IMAGE_TYPE:
        return {"_type": "Image"}
    return _describe(field.type)


def name_type(kind: pa.DataType) -> str:
    """Return what `datasets` calls a type of numbers or texts."""
    names = {pa.float64(): "float64", pa.float32(): "float32", pa.float16(): "float16"}
    return names.get(kind, str(kind))


def _describe(kind: pa.DataType) -> dict[str, object]:
    if pa.types.is_list(kind):
        return {"feature": _describe(kind.value_type), "_type": "Sequence"}
    return {"dtype": name_type(kind), "_type": "Value"}


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type that every reader knows: what the sidecar has, with large and fixed-size lists and texts as ordinary ones."""
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def _write(
    source: DatasetSource, schema: pa.Schema, prefix: str, num_files: int, store: Store, part: Part
) -> dict[str, Any]:
    path = f"{prefix}train-{part.number:05d}-of-{num_files:05d}.parquet"
    sources: Mapping[str, str] = json.loads(schema.metadata[b"winnow.sources"])
    written = schema.with_metadata({"huggingface": schema.metadata[b"huggingface"]})
    files: Files = {}
    memory_bytes = 0
    with (
        write_file(store, path, files) as file,
        pq.ParquetWriter(pa.PythonFile(file, "w"), written, compression="zstd") as writer,
    ):
        for entry, low, high in source.ranges(part.start, part.stop):
            table = source.read(entry)
            with source.open_tar(entry) as tar:
                for start in range(low, high, _GROUP_ROWS):
                    rows = table.slice(start, min(_GROUP_ROWS, high - start))
                    images = [
                        {"bytes": read_member(tar, row, "image"), "path": f"{row['uid']}.{row['image_suffix']}"}
                        for row in rows.select([name for name, _ in SIDECAR_COLUMNS]).to_pylist()
                    ]
                    batch = _make_batch(rows, images, written, sources)
                    memory_bytes += batch.nbytes
                    writer.write_table(batch, row_group_size=_GROUP_ROWS)
    return {"files": files, "memory_bytes": memory_bytes}


def _make_batch(
    rows: pa.Table, images: Sequence[Mapping[str, object]], schema: pa.Schema, sources: Mapping[str, str]
) -> pa.Table:
    columns = [
        pa.array(images, IMAGE_TYPE),
        *(rows[sources[field.name]].cast(field.type) for field in list(schema)[1:]),
    ]
    return pa.table(columns, schema=schema)
