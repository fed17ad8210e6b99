"""Energon (NVIDIA's Megatron loader, read with release 7.4): tars with `.nv-meta/` and an index of samples beside each.

Everything that `energon prepare` would make is there, so the folder loads as it is: `dataset.yaml` (captioning samples), `split.yaml`,
`.info.json`, `index.sqlite`, `index.uuid`, and `00000.tar.idx`. Energon knows no weights of samples: those become repetitions.
"""

import json
import sqlite3
import struct
import tempfile
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from curate.executor import Executor
from curate.store import Store
from pipelines.export.repeat import NO_REPETITION
from pipelines.export.source import DatasetSource
from pipelines.export.target import PARTS, ExportReport, Part, Target, split_evenly, write_file
from pipelines.export.tars import Place, TarPlan, plan_tars, stock_members, tar_name, write_tar
from schemas.errors import InputError
from schemas.progress import Progress

FORMAT = "energon"
META = ".nv-meta"
# The release whose layout this is; Energon keeps it for information.
_ENERGON = "7.4.1"
_TABLES = (
    "CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL, "
    "byte_offset INTEGER, byte_size INTEGER)",
    "CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER, "
    "content_byte_size INTEGER)",
)
_INDEXES = (
    "CREATE INDEX idx_samples_sample_key ON samples(sample_key)",
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size)",
)
_PLACES = pa.schema([
    ("key", pa.string()),
    ("offset", pa.int64()),
    ("num_bytes", pa.int64()),
    ("part", pa.string()),
    ("part_offset", pa.int64()),
    ("part_bytes", pa.int64()),
])


def export(
    source: DatasetSource,
    out: str,
    *,
    executor: Executor,
    progress: Progress,
    shard_size: int = 10_000,
    num_samples: int = 0,
    is_weighted: bool = True,
    val_shards: int = 0,
) -> ExportReport:
    """Write a dataset to the folder `out`; the last `val_shards` tars are the split `val`, the others `train`."""
    settings = {"shard_size": shard_size, "num_samples": num_samples, "is_weighted": is_weighted, "val": val_shards}
    target = Target(out, FORMAT, {**source.identity(), **settings})
    if found := target.find():
        return found
    plan = plan_tars(source, num_samples=num_samples, is_weighted=is_weighted)
    parts = split_evenly(plan.num_samples, shard_size)
    if not 0 <= val_shards < len(parts):
        raise InputError(
            f"{val_shards} of {len(parts)} tars for validation leave none to train on; give fewer with --val-shards, or smaller tars "
            "with --shard-size"
        )
    target.run(partial(_write, plan, len(parts)), parts, executor, progress)
    names = [tar_name(part.number, len(parts)) for part in parts]
    _write_index(target, parts)
    info = {
        "energon_version": _ENERGON,
        "shard_counts": {n: p.stop - p.start for n, p in zip(names, parts, strict=True)},
    }
    target.write(f"{META}/.info.json", (json.dumps(info, indent=2) + "\n").encode())
    # The same data has the same name: loaders compare it with what they cached.
    target.write(f"{META}/index.uuid", str(uuid.UUID(target.identity[:32])).encode())
    num_train = len(names) - val_shards
    splits = {"split_parts": {"train": names[:num_train], "val": names[num_train:], "test": []}, "exclude": []}
    target.write(f"{META}/split.yaml", yaml.safe_dump(splits, sort_keys=False).encode())
    dataset = {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": plan.suffix, "caption": "txt"},
    }
    target.write(f"{META}/dataset.yaml", yaml.safe_dump(dataset, sort_keys=False).encode())
    keys = ", ".join(f"json[{key}]" for key in plan.caption_shares())
    notes = {
        "left_out": NO_REPETITION,
        "caption": f"txt, the likeliest text of each sample; or one of {keys} in {META}/dataset.yaml",
    }
    return target.publish(source.name, plan.num_samples, num_left_out=plan.num_left_out, notes=notes)


def _write(plan: TarPlan, num_tars: int, store: Store, part: Part) -> dict[str, Any]:
    name = tar_name(part.number, num_tars)
    files, places, end = write_tar(plan, store, part, name, stock_members)
    with write_file(store, f"{name}.idx", files) as file:
        for place in places:
            file.write(struct.pack("<Q", place.offset))
        file.write(struct.pack("<Q", end))
    store.commit_table(_places_file(part), _tabulate(places, end))
    return {"files": files}


def _tabulate(places: list[Place], end: int) -> pa.Table:
    """Return a row per member."""
    stops = [*(place.offset for place in places[1:]), end]
    rows = [
        (place.key, place.offset, stop - place.offset, *member)
        for place, stop in zip(places, stops, strict=True)
        for member in place.members
    ]
    return pa.table(list(map(list, zip(*rows, strict=True))), schema=_PLACES)


def _write_index(target: Target, parts: list[Part]) -> None:
    """Write index.sqlite: where every sample and every member lies, part after part."""
    with tempfile.TemporaryDirectory(prefix="winnow-export-") as folder:
        path = Path(folder) / "index.sqlite"
        database = sqlite3.connect(path, isolation_level=None)
        try:
            for statement in ("PRAGMA journal_mode = OFF", "BEGIN", *_TABLES):
                database.execute(statement)
            for part in parts:
                _insert(database, part.number, target.staging.read_table(_places_file(part)))
            for statement in (*_INDEXES, "COMMIT"):
                database.execute(statement)
        finally:
            database.close()
        target.add(f"{META}/index.sqlite", path)


def _insert(database: sqlite3.Connection, tar: int, table: pa.Table) -> None:
    columns = [column.to_pylist() for column in table.columns]
    samples: list[tuple[object, ...]] = []
    members: list[tuple[object, ...]] = []
    for key, offset, num_bytes, *member in zip(*columns, strict=True):
        if not samples or samples[-1][1] != key:
            samples.append((tar, key, len(samples), offset, num_bytes))
        members.append((tar, len(samples) - 1, *member))
    database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
    database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", members)


def _places_file(part: Part) -> str:
    return f"{PARTS}/{part.number:05d}.parquet"
