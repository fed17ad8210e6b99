"""The few rows that a report shows: their pictures, reduced and bounded in number and bytes, their texts and what became of them."""

import base64
import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from curate.images import OVERSAMPLING, ImageError, decode, encode, resize
from curate.shard_reader import index_images
from curate.store import Pool
from pipelines.page.words import value as format_value
from pipelines.report.facts import FACTS, MAX_RULES, Facts

_FORMAT = "webp"
# Texts in the page are cut off here; `winnow why` has the whole of them.
_MAX_TEXT = 1_500
_TEXT_COLUMNS = ["uid", "url", "caption", "key", "error_message", "original_width", "original_height"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a pool a page may hold."""

    picture_size: int = 224  # longest side in pixels
    quality: int = 72  # of WebP, 1 to 100
    num_bytes: int = 12 << 20  # of all pictures, as files


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row of the pool as a page shows it."""

    position: int
    picture: str  # a data URL; empty where there is none
    problem: str  # why there is none
    caption: str
    url: str
    uid: str
    verdict: str  # kept, dropped, or empty without a selection
    reason: str  # the first rule it fails
    others: tuple[str, ...]  # the other rules it fails
    weight: float | None
    size: str
    values: Mapping[str, str]  # measure's column: its value as text


@dataclass
class Album:
    """The rows shown, by their position in the pool; `num_pictures` and `num_bytes` count what was embedded."""

    shown: dict[int, Shown] = field(default_factory=dict)
    num_pictures: int = 0
    num_bytes: int = 0
    num_left_out: int = 0  # pictures that the limit on bytes left no room for

    def __getitem__(self, position: int) -> Shown:
        return self.shown[position]


def load_album(facts: Facts, positions: Iterable[int], limits: Limits) -> Album:
    """Read the rows at `positions`; where the pictures come to more bytes than allowed, the last ones are left out."""
    # A row in two galleries is in the page twice.
    num_uses = Counter(positions)
    wanted = list(num_uses)
    album = Album()
    if not wanted:
        return album
    files = _read_rows(facts, wanted, limits)
    names = [each.column for each in facts.measures]
    columns = ", ".join(["rowid", "kept", "ok", "first", "mask", "weight", *names])
    listed = ", ".join(map(str, wanted))
    rows = {row[0]: row for row in facts.query(f"SELECT {columns} FROM {FACTS} WHERE rowid IN ({listed})")}
    for position in wanted:
        texts, picture, problem = files[position]
        num_bytes = len(picture) * num_uses[position]
        if picture and album.num_bytes + num_bytes > limits.num_bytes:
            picture, problem = b"", "left out: the page is as large as it may be"
            album.num_left_out += num_uses[position]
        if picture:
            album.num_pictures += num_uses[position]
            album.num_bytes += num_bytes
        _, kept, _, first, mask, weight, *numbers = rows[position]
        failed = [rule for bit, rule in enumerate(facts.rules[:MAX_RULES]) if mask >> bit & 1]
        reason = facts.rules[first] if first is not None and facts.rules else ""
        width, height = texts["original_width"], texts["original_height"]
        album.shown[position] = Shown(
            position=position,
            picture=f"data:image/{_FORMAT};base64,{base64.b64encode(picture).decode()}" if picture else "",
            problem=problem,
            caption=str(texts["caption"] or "")[:_MAX_TEXT],
            url=str(texts["url"] or ""),
            uid=str(texts["uid"]),
            verdict=("kept" if kept else "dropped") if facts.choice else "",
            reason=reason,
            others=tuple(rule for rule in failed if rule != reason),
            weight=weight,
            size=f"{width} x {height}" if width and height else "",
            values={
                name: format_value(number) for name, number in zip(names, numbers, strict=True) if number is not None
            },
        )
    return album


Found = tuple[Mapping[str, object], bytes, str]


def _read_rows(facts: Facts, positions: Sequence[int], limits: Limits) -> dict[int, Found]:
    """Return the texts, the reduced picture and what is wrong with it for every position; a tar's headers are read once."""
    by_shard: dict[int, list[int]] = defaultdict(list)
    for position in positions:
        by_shard[bisect.bisect_right(facts.starts, position) - 1].append(position)
    found: dict[int, Found] = {}
    for number, own in sorted(by_shard.items()):
        header = facts.catalog.shards[number]
        table = facts.pool.read_table(facts.pool.shard_parquet(header.shard), _TEXT_COLUMNS)
        rows = [position - facts.starts[number] for position in own]
        texts = table.take(rows).to_pylist()
        files = _read_files(facts.pool, facts.pool.shard_tar(header), {str(text["key"]) for text in texts})
        for position, text in zip(own, texts, strict=True):
            picture, problem = _reduce(files.get(str(text["key"])), limits)
            found[position] = (text, picture, str(text["error_message"] or problem) if not picture else "")
    return found


def _read_files(pool: Pool, tar: str, keys: set[str]) -> dict[str, bytes]:
    """Return the image files of some samples of a tar; none where the tar has been moved away."""
    if not pool.exists(tar):
        return {}
    files = {}
    with pool.open(tar) as file:
        for key, member in index_images(file).items():
            if key in keys:
                file.seek(member.offset)
                files[key] = file.read(member.size)
    return files


def _reduce(data: bytes | None, limits: Limits) -> tuple[bytes, str]:
    """Return a picture at the size of the page, or nothing and the reason."""
    if data is None:
        return b"", "no picture"
    try:
        rgb = decode(data, min_side=int(OVERSAMPLING * limits.picture_size))
        small = resize(rgb, limits.picture_size, "keep_ratio_largest", only_if_bigger=True)
        return encode(small, _FORMAT, limits.quality), ""
    except ImageError as error:
        return b"", str(error)
