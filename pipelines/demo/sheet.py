"""A contact sheet: examples of what was kept and of what each rule dropped, each with its caption, its reason and what was planted."""

import io
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from curate.images import ImageError, decode
from curate.store import Pool
from curate.tar import index_tar
from pipelines.demo.compare import Comparison
from schemas.sample import STATUS_SUCCESS

_TILE = 132
_TEXT_HEIGHT = 58
_TITLE_HEIGHT = 24
_PER_ROW = 9
_MARGIN = 8
_PAPER, _INK, _GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_KEPT = "kept"
_MISSED = "kept, although faulty"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tile: where the image lies, and what to write under it."""

    shard: int
    key: str
    alt_text: str
    kind: str


def draw_sheet(pool: Pool, ledger: pa.Table, rules: Sequence[str], comparison: Comparison) -> bytes:
    """Return the sheet as PNG: kept pairs, faults that were missed, then a row per rule with the first pairs that it dropped, in pool order."""
    rows = _choose(pool, ledger, rules, comparison)
    files = _read_files(pool, [example for examples in rows.values() for example in examples])
    row_height = _TITLE_HEIGHT + _TILE + _TEXT_HEIGHT
    sheet = Image.new("RGB", (_MARGIN + _PER_ROW * (_TILE + _MARGIN), len(rows) * row_height + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(15), ImageFont.load_default(10)
    for position, (heading, examples) in enumerate(rows.items()):
        top = position * row_height
        pen.text((_MARGIN, top + 4), heading, fill=_INK, font=title)
        for column, example in enumerate(examples):
            left = _MARGIN + column * (_TILE + _MARGIN)
            tile = _tile(files.get((example.shard, example.key), b""))
            sheet.paste(tile, (left, top + _TITLE_HEIGHT))
            below = top + _TITLE_HEIGHT + _TILE + 2
            lines = textwrap.wrap(_to_ascii(example.alt_text), 25)[:4] or ["(no caption)"]
            pen.text((left, below), f"planted: {example.kind}", fill=_GREY, font=small)
            pen.multiline_text((left, below + 12), "\n".join(lines), fill=_INK, font=small, spacing=1)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _choose(
    pool: Pool, ledger: pa.Table, rules: Sequence[str], comparison: Comparison
) -> Mapping[str, Sequence[Example]]:
    """Return up to a row of examples by heading; headings without any are left out."""
    headings = {rule: f"dropped by the rule {rule!r}" for rule in rules}
    rows: dict[str, list[Example]] = {name: [] for name in (_KEPT, _MISSED, *headings.values())}
    reasons = dict(zip(ledger["uid"].to_pylist(), ledger["first_failing_rule"].to_pylist(), strict=True))
    for shard in pool.shards():
        table = pool.read_table(pool.shard_parquet(shard), ["uid", "key", "caption", "status"])
        for sample in table.to_pylist():
            uid, rule = sample["uid"], reasons[sample["uid"]]
            chosen = rows[headings[rule] if rule else _MISSED if uid in comparison.missed else _KEPT]
            if sample["status"] == STATUS_SUCCESS and len(chosen) < _PER_ROW:
                kind = comparison.kinds[uid]
                chosen.append(Example(shard=shard, key=sample["key"], alt_text=sample["caption"] or "", kind=kind))
    return {heading: examples for heading, examples in rows.items() if examples}


def _read_files(pool: Pool, examples: Sequence[Example]) -> Mapping[tuple[int, str], bytes]:
    """Return the image files of the examples, one pass over the headers of each tar."""
    wanted: dict[int, set[str]] = defaultdict(set)
    for example in examples:
        wanted[example.shard].add(example.key)
    files = {}
    for shard, keys in wanted.items():
        with pool.open(pool.shard_tar(pool.shard_header(shard))) as file:
            members = [member for member in index_tar(file) if _is_image(member.name, keys)]
            for member in members:
                file.seek(member.offset)
                files[shard, member.name.split(".")[0]] = file.read(member.size)
    return files


def _is_image(name: str, keys: set[str]) -> bool:
    key, _, suffix = name.partition(".")
    return key in keys and suffix not in {"json", "txt"}


def _tile(data: bytes) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE), (238, 238, 238))
    try:
        picture = Image.fromarray(decode(data))
    except ImageError:
        return tile
    scale = _TILE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    tile.paste(picture, ((_TILE - picture.width) // 2, (_TILE - picture.height) // 2))
    return tile


def _to_ascii(text: str) -> str:
    # The one font that Pillow brings along has no accents.
    plain = text.replace("ß", "ss").replace("œ", "oe").replace("Œ", "Oe")
    return unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
