"""A dataset's samples in new tars of equal size: what open_clip, Energon and DataCompDR's trainer read.

Weights become repetitions, a view's captions get into the JSON that its pool's tars do not have them in, and every sample has the same
members with the same keys.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from curate.pack import caption_key
from curate.selection import ELEMENTS
from curate.store import Store
from curate.tar import TarWriter
from pipelines.export.repeat import Repeats, plan_repeats
from pipelines.export.source import DatasetSource
from pipelines.export.target import Files, Part, write_file
from schemas.dataset import ShardEntry
from schemas.errors import InputError, StaleDatasetError

FALLBACK = "alt_text"
# What readers know; in other formats pictures would be left out without a word.
STOCK_SUFFIXES = ("jpg", "png", "webp")
_SUFFIXES = {"jpeg": "jpg"}
# Of a picture's own JSON, what every sample of a view is given, with values of one type.
_VIEW_KEYS: Mapping[str, object] = {
    "width": 0,
    "height": 0,
    "original_width": 0,
    "original_height": 0,
    "sha256": "",
}

Members = list[tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, or one repetition of it; `row` is its place in the dataset."""

    uid: str
    copy: int
    row: int
    url: str
    suffix: str
    image: bytes
    record: Mapping[str, object]  # what KEY.json holds
    captions: Mapping[str, str | Sequence[str]]
    text: str  # the likeliest caption that is there

    @property
    def key(self) -> str:
        """The name of the sample's members: the uid and the repetition, as DataComp's resharder names them."""
        return f"{self.uid}-{self.copy}"


@dataclass(frozen=True, kw_only=True)
class TarPlan:
    """A dataset's samples as a sequence with repetitions, and what is the same in all of them."""

    source: DatasetSource
    repeats: Repeats
    counts: tuple[int, ...]  # samples with repetitions, by shard
    captions: tuple[str, ...]  # caption columns of the sidecars, the likeliest first, the web text last
    list_lengths: Mapping[str, int] = field(default_factory=dict)  # most texts of one sample, by list caption
    suffix: str = "jpg"
    num_left_out: int = 0  # samples whose weight came to no repetition

    @property
    def num_samples(self) -> int:
        """Samples, repetitions included."""
        return sum(self.counts)

    def caption_shares(self) -> dict[str, float]:
        """Return the JSON key of every text with its probability; the web text has 0 where it only fills gaps."""
        shares: dict[str, float] = {}
        for column in self.captions:
            share = self.source.index.captions.get(column, 0.0)
            if column in self.list_lengths:
                share = self.source.index.captions[f"{column}{ELEMENTS}"]
                length = self.list_lengths[column]
                shares |= {f"{caption_key(column)}_{index}": share / length for index in range(length)}
            else:
                shares[caption_key(column)] = share
        return shares


@dataclass(frozen=True)
class Place:
    """Where a sample lies in a tar: its first header, and its members by suffix with the first byte of their data and their length."""

    key: str
    offset: int
    members: tuple[tuple[str, int, int], ...]


def plan_tars(source: DatasetSource, *, num_samples: int = 0, is_weighted: bool = True) -> TarPlan:
    """Look at every sidecar, column by column; raises `InputError` where pictures are of several formats, or of one readers do not know."""
    repeats = plan_repeats((w for _, w in source.weights()), num_samples) if is_weighted else Repeats(scale=0.0)
    captions = caption_columns(source)
    lengths: dict[str, int] = {}
    suffixes: set[str] = set()
    counts, num_left_out = [], 0
    for entry in source.index.shards:
        table = source.read(entry, ["uid", "weight", "image_suffix", *captions])
        found = repeats.count(table["uid"].to_pylist(), table["weight"].to_numpy())
        counts.append(int(found.sum()))
        num_left_out += int((found == 0).sum())
        suffixes |= {_SUFFIXES.get(suffix, suffix) for suffix in table["image_suffix"].unique().to_pylist()}
        for name in captions:
            if pa.types.is_list(table[name].type):
                longest = max((len(texts or ()) for texts in table[name].to_pylist()), default=0)
                lengths[name] = max(lengths.get(name, 0), longest)
    if len(suffixes) != 1 or not suffixes <= set(STOCK_SUFFIXES):
        raise InputError(
            f"{source.store.root} has pictures in {', '.join(sorted(suffixes))}; readers need one format of "
            f"{', '.join(STOCK_SUFFIXES)}: build it again with --image-format jpg"
        )
    return TarPlan(
        source=source,
        repeats=repeats,
        counts=tuple(counts),
        captions=captions,
        list_lengths=lengths,
        suffix=suffixes.pop(),
        num_left_out=num_left_out,
    )


def caption_columns(source: DatasetSource) -> tuple[str, ...]:
    """Return the caption columns of the sidecars, the likeliest first, the web text last where it is not in the mixture."""
    shares = source.index.captions
    ordered = [name.removesuffix(ELEMENTS) for name in sorted(shares, key=lambda name: -shares[name])]
    return tuple(dict.fromkeys([*ordered, FALLBACK]))


def read_samples(plan: TarPlan, part: Part) -> Iterator[Sample]:
    """Yield the samples at `start` to `stop` of the sequence with repetitions."""
    first = row = 0
    for entry, count in zip(plan.source.index.shards, plan.counts, strict=True):
        low, high = max(part.start - first, 0), min(part.stop - first, count)
        if low < high:
            yield from _read_shard(plan, entry, row, low, high)
        first, row = first + count, row + entry.num_samples


def write_tar(
    plan: TarPlan,
    store: Store,
    part: Part,
    path: str,
    make: Callable[[Sample], Members],
    name: Callable[[Sample], str] = lambda sample: sample.key,
) -> tuple[Files, list[Place], int]:
    """Write a part's samples as the tar `path`; return the file's entry, every sample's place and where the last one ends.

    A sample for which `make` returns no members is left out.
    """
    files: Files = {}
    places = []
    with write_file(store, path, files) as file:
        writer = TarWriter(file)  # type: ignore[arg-type]  # it only writes
        for sample in read_samples(plan, part):
            start, members = writer.position, []
            for suffix, data in make(sample):
                members.append((suffix, writer.add(f"{name(sample)}.{suffix}", data), len(data)))
            if members:
                places.append(Place(name(sample), start, tuple(members)))
        end = writer.position
        writer.close()
    return files, places, end


def stock_members(sample: Sample) -> Members:
    """Return the members that img2dataset writes, in its order: picture, JSON, text."""
    record = json.dumps({**sample.record, "key": sample.key}, indent=4).encode()
    return [(sample.suffix, sample.image), ("json", record), ("txt", sample.text.encode())]


def tar_name(number: int, num_tars: int) -> str:
    """Return a tar's name: five digits or as many as the last one needs, because `{00000..100000}` stands for names of one length."""
    return f"{number:0{max(5, len(str(num_tars - 1)))}d}.tar"


def tar_pattern(folder: str, num_tars: int) -> str:
    """Return the tars of a folder in brace notation."""
    first, last = (tar_name(number, num_tars) for number in (0, num_tars - 1))
    return f"{folder}/{first}" if num_tars == 1 else f"{folder}/{{{first[:-4]}..{last[:-4]}}}.tar"


def _read_shard(plan: TarPlan, entry: ShardEntry, first_row: int, low: int, high: int) -> Iterator[Sample]:
    table = plan.source.read(entry)
    counts = plan.repeats.count(table["uid"].to_pylist(), table["weight"].to_numpy())
    places = np.repeat(np.arange(len(counts)), counts)[low:high]
    starts = np.cumsum(counts) - counts
    copies = np.arange(low, high) - starts[places]
    wanted = np.unique(places)
    rows = dict(zip(wanted.tolist(), table.take(pa.array(wanted)).to_pylist(), strict=True))
    with plan.source.open_tar(entry) as tar:
        sample: Sample | None = None
        for place, copy in zip(places.tolist(), copies.tolist(), strict=True):
            if sample is None or sample.row != first_row + place:
                sample = _read_sample(plan, tar, rows[place], first_row + place)
            yield replace(sample, copy=copy)


def _read_sample(plan: TarPlan, tar: BinaryIO, row: Mapping[str, Any], place: int) -> Sample:
    captions: dict[str, str | Sequence[str]] = {}
    for column in plan.captions:
        value = row[column]
        captions[column] = [text or "" for text in value or ()] if isinstance(value, list) else value or ""
    return Sample(
        uid=row["uid"],
        copy=0,
        row=place,
        url=row["url"] or "",
        suffix=plan.suffix,
        image=read_member(tar, row, "image"),
        record=_make_record(plan, tar, row, captions),
        captions=captions,
        text=_first_text(captions),
    )


def read_member(tar: BinaryIO, row: Mapping[str, Any], kind: str) -> bytes:
    """Return a sample's picture, JSON or text; raises `StaleDatasetError` where the tar ends inside it."""
    tar.seek(row[f"{kind}_offset"])
    data = tar.read(row[f"{kind}_bytes"])
    if len(data) != row[f"{kind}_bytes"]:
        raise StaleDatasetError(f"sample {row['uid']}: its tar ends inside the {kind}; build the dataset again")
    return data


def _make_record(
    plan: TarPlan, tar: BinaryIO, row: Mapping[str, Any], captions: Mapping[str, str | Sequence[str]]
) -> dict[str, object]:
    own: dict[str, object] = json.loads(read_member(tar, row, "json")) if row["json_offset"] is not None else {}
    if plan.source.index.kind == "build":
        return own
    record: dict[str, object] = {"uid": row["uid"]}
    for column, value in captions.items():
        if isinstance(value, str):
            record[caption_key(column)] = value
            continue
        texts = [*value, *[""] * (plan.list_lengths.get(column, 0) - len(value))]
        record |= {f"{caption_key(column)}_{index}": text for index, text in enumerate(texts)}
    record |= {"url": row["url"] or "", "key": row["key"]}
    return record | {name: own.get(name) or default for name, default in _VIEW_KEYS.items()}


def _first_text(captions: Mapping[str, str | Sequence[str]]) -> str:
    for value in captions.values():
        for text in [value] if isinstance(value, str) else value:
            if text.strip():
                return text
    return ""
