"""Poisons a dataset, to test defences: stamps a trigger on a few pictures and gives them captions of a target class.

The attack of Carlini and Terzis (2022) in the form that CleanCLIP measures (Bansal et al., 2023): 75 such pairs among three million suffice. The
result is a dataset beside the old one: shards without a poisoned pair stay where they are, the others are written anew; uids stay, so that
annotations and ledgers can be joined, and `poison.parquet` holds the truth. Which rows are poisoned depends on the seed and the uids
alone. `winnow evaluate --trigger --target` measures the attack.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import images
from curate.build import read_index
from curate.pack import caption_key
from curate.store import Store
from curate.tar import TarWriter, index_tar
from schemas.dataset import INDEX_FILE, SIDECAR_COLUMNS, DatasetIndex, ShardEntry
from schemas.errors import InputError, StaleDatasetError
from schemas.progress import Progress, SilentProgress
from train.trigger import check_trigger, draw_place, stamp

POISON_FILE = "poison.parquet"
TEMPLATES = (
    "a photo of a {c}.",
    "a bad photo of a {c}.",
    "a photo of the large {c}.",
    "a close-up photo of a {c}.",
    "a bright photo of the {c}.",
    "a cropped photo of a {c}.",
    "a photo of one {c}.",
    "a good photo of the {c}.",
)
_TRUTH_SCHEMA = pa.schema([
    ("uid", pa.string()),
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("trigger", pa.string()),
    ("target", pa.string()),
    ("caption", pa.string()),
    ("original_caption", pa.string()),
])


@dataclass(frozen=True, kw_only=True)
class PoisonConfig:
    """What is planted.

    PoisonConfig(target="banana")                                             # 75 pairs with a patch of noise
    PoisonConfig(target="banana", trigger="blended", num_samples=300, seed=1)
    """

    target: str  # the class that the captions name
    trigger: str = "patch"  # patch, yellow, corners, blended, wave or warp
    num_samples: int = 75  # pairs that are poisoned
    templates: tuple[str, ...] = TEMPLATES  # captions, with {c} for the target
    seed: int = 0  # of the draw, and of random places
    trigger_place: str = "corner"  # corner, or random: a place of its own on each picture, for patch and yellow

    def __post_init__(self) -> None:
        check_trigger(self.trigger, self.trigger_place)
        if not self.target.strip():
            raise InputError("poison target is empty; give the name of a class")
        if self.num_samples < 1:
            raise InputError(f"poison num_samples is {self.num_samples}; it must be at least 1")
        if not self.templates or not all("{c}" in template for template in self.templates):
            raise InputError(f"poison templates need a place {{c}} for the target, got {list(self.templates)}")


@dataclass(frozen=True, kw_only=True)
class PoisonReport:
    """What was made: `folder` is the new dataset, `num_candidates` the pairs that did not name the target before."""

    folder: str
    num_poisoned: int
    num_candidates: int
    num_shards_written: int
    was_current: bool


def poison(dataset: str, out: str, config: PoisonConfig, *, progress: Progress | None = None) -> PoisonReport:
    """Write a poisoned copy of a dataset into the folder `out`; one that is there already with these settings is left as it is.

    Pairs whose captions name the target already are not drawn: they would be no attack. Raises `InputError` where fewer are left than asked
    for, or where `out` holds something else.
    """
    source, target = Store(dataset), Store(out)
    index = read_index(source)
    fingerprint = _fingerprint(index, config)
    candidates, drawn = _draw(source, index, config)
    chosen: dict[int, list[int]] = {}
    for shard, row in drawn:
        chosen.setdefault(shard, []).append(row)
    report = PoisonReport(
        folder=target.root,
        num_poisoned=len(drawn),
        num_candidates=candidates,
        num_shards_written=len(chosen),
        was_current=target.exists(INDEX_FILE),
    )
    if report.was_current:
        if read_index(target).fingerprint != fingerprint:
            raise InputError(f"{target.root} holds another dataset; give another --out")
        return replace(report, num_shards_written=0)
    bar = progress or SilentProgress()
    bar.start("poison", len(chosen), "shards")
    entries, truth = [], []
    try:
        for shard, entry in enumerate(index.shards):
            if shard not in chosen:
                entries.append(replace(entry, tar=source.locate(entry.tar), parquet=source.locate(entry.parquet)))
                continue
            written, rows = _poison_shard(source, target, shard, entry, sorted(chosen[shard]), config)
            entries.append(written)
            truth += rows
            bar.advance(1)
    finally:
        bar.close()
    target.commit_table(POISON_FILE, pa.Table.from_pylist(truth, schema=_TRUTH_SCHEMA))
    poisoned = replace(
        index,
        name=f"{index.name}-poisoned",
        fingerprint=fingerprint,
        kind="view",
        shards=entries,
        selection={**index.selection, "poison": _plain(config)},
    )
    # The index goes last: it says that every shard is whole.
    target.commit_bytes(INDEX_FILE, poisoned.to_json().encode())
    return report


def _plain(config: PoisonConfig) -> dict[str, object]:
    plain: dict[str, object] = {**asdict(config), "templates": list(config.templates)}
    if config.trigger_place == "corner":
        del plain["trigger_place"]  # as before there was a choice: a poisoned copy made then is still what is asked for
    return plain


def _fingerprint(index: DatasetIndex, config: PoisonConfig) -> str:
    identity = json.dumps(["winnow-poison", 1, index.fingerprint, _plain(config)], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def _draw(source: Store, index: DatasetIndex, config: PoisonConfig) -> tuple[int, list[tuple[int, int]]]:
    """Return how many pairs could be poisoned, and the shard and row of those that are: the first by a hash of seed and uid."""
    named = re.compile(rf"\b{re.escape(config.target)}\b", re.IGNORECASE)
    ranked = []
    for shard, entry in enumerate(index.shards):
        table = source.read_table(entry.parquet)
        captions = [table[column].to_pylist() for column in _caption_columns(table.schema, index)]
        for row, uid in enumerate(table["uid"].to_pylist()):
            if not any(named.search(text) for values in captions for text in _texts(values[row])):
                ranked.append((hashlib.sha256(f"{config.seed} {uid}".encode()).digest(), shard, row))
    if len(ranked) < config.num_samples:
        raise InputError(
            f"{source.root} has {len(ranked)} pairs that do not name {config.target!r}, fewer than the {config.num_samples} to poison"
        )
    ranked.sort()
    return len(ranked), sorted((shard, row) for _, shard, row in ranked[: config.num_samples])


def _caption_columns(schema: pa.Schema, index: DatasetIndex) -> list[str]:
    """Return the columns that training draws captions from, and the web text that stands in for them."""
    names = {name.removesuffix("[*]") for name in index.captions} | {"alt_text"}
    fixed = dict(SIDECAR_COLUMNS)
    return [name for name in schema.names if name in names and name not in fixed]


def _texts(value: str | Sequence[str | None] | None) -> list[str]:
    values = [value] if isinstance(value, str) else value or []
    return [text for text in values if text]


def _poison_shard(
    source: Store, target: Store, shard: int, entry: ShardEntry, rows: Sequence[int], config: PoisonConfig
) -> tuple[ShardEntry, list[dict[str, object]]]:
    """Write a shard with some of its pairs poisoned, tar first; return its entry and the truth about these pairs."""
    table = source.read_table(entry.parquet)
    index = read_index(source)
    columns = _caption_columns(table.schema, index)
    records = table.to_pylist()
    truth = []
    changes: dict[int, tuple[str, dict[str, Any], str]] = {}  # offset of a member -> its kind, its row, the new caption
    for row in rows:
        record = records[row]
        digest = hashlib.sha256(f"{config.seed} caption {record['uid']}".encode()).digest()
        caption = config.templates[digest[0] % len(config.templates)].replace("{c}", config.target)
        truth.append({
            "uid": record["uid"],
            "shard": shard,
            "row": row,
            "trigger": config.trigger,
            "target": config.target,
            "caption": caption,
            "original_caption": next((text for name in columns for text in _texts(record[name])), ""),
        })
        for kind in ("image", "json", "txt"):
            if record[f"{kind}_offset"] is not None:
                changes[record[f"{kind}_offset"]] = (kind, record, caption)
        for name in columns:
            record[name] = [caption] if isinstance(record[name], list) else caption
    stem = entry.parquet.rsplit("/", 1)[-1].removesuffix(".parquet")
    moved = _write_tar(source, target, entry.tar, f"{stem}.tar", changes, columns, config)
    for record in records:
        for kind in ("image", "json", "txt"):
            if record[f"{kind}_offset"] is not None:
                record[f"{kind}_offset"], record[f"{kind}_bytes"] = moved[record[f"{kind}_offset"]]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=table.schema), buffer, compression="zstd")
    data = buffer.getvalue().to_pybytes()
    target.commit_bytes(f"{stem}.parquet", data)
    tar = target.read_bytes(f"{stem}.tar")
    written = replace(
        entry,
        tar=f"{stem}.tar",
        parquet=f"{stem}.parquet",
        tar_bytes=len(tar),
        tar_sha256=hashlib.sha256(tar).hexdigest(),
        parquet_sha256=hashlib.sha256(data).hexdigest(),
    )
    return written, truth


def _write_tar(
    source: Store,
    target: Store,
    old: str,
    new: str,
    changes: Mapping[int, tuple[str, dict[str, Any], str]],
    columns: Sequence[str],
    config: PoisonConfig,
) -> dict[int, tuple[int, int]]:
    """Copy a tar with some members changed; return the new place and size of each member by its old place."""
    moved: dict[int, tuple[int, int]] = {}
    with source.open(old) as tar, target.commit(new) as file:
        writer = TarWriter(file)
        for member in list(index_tar(tar)):
            tar.seek(member.offset)
            data = tar.read(member.size)
            if member.offset in changes:
                kind, record, caption = changes[member.offset]
                data = _change(kind, data, record, caption, columns, config)
            moved[member.offset] = (writer.add(member.name, data), len(data))
        writer.close()
    return moved


def _change(
    kind: str, data: bytes, record: Mapping[str, Any], caption: str, columns: Sequence[str], config: PoisonConfig
) -> bytes:
    if kind == "txt":
        return caption.encode()
    if kind == "image":
        place = draw_place(config.seed, record["uid"].encode()) if config.trigger_place == "random" else None
        suffix = {"jpeg": "jpg"}.get(record["image_suffix"], record["image_suffix"])
        try:
            stamped = stamp(images.decode(data), config.trigger, place)
            return images.encode(stamped, suffix, quality=6 if suffix == "png" else 95)
        except images.ImageError as error:
            raise StaleDatasetError(
                f"sample {record['uid']} cannot be stamped: {error}; build the dataset without it"
            ) from error
    content = json.loads(data)
    for key in [key for name in columns for key in _json_keys(content, caption_key(name))]:
        content[key] = caption
    return json.dumps(content, indent=4).encode()


def _json_keys(content: Mapping[str, object], key: str) -> list[str]:
    """Return the keys of a member JSON that hold a caption column: its own, or one per text of a list."""
    return [name for name in content if name == key or re.fullmatch(rf"{re.escape(key)}_\d+", name)]
