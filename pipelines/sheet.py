"""Contact sheets: rows of pictures with a few words under each, as one PNG; and the rows at both ends of any SQL value."""

import io
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from curate.catalog import Catalog
from curate.images import ImageError, decode
from curate.shard_reader import index_images
from curate.store import Pool
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS

_TILE = 132
_NOTE_HEIGHT = 12
_TEXT_HEIGHT = 58
_TITLE_HEIGHT = 24
_MARGIN = 8
_LETTERS_PER_LINE, _LINES_OF_CAPTION = 25, 4
_PAPER, _INK, _GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tile: where the image lies, its caption, and a line to write above it."""

    pool: Pool
    shard: int
    key: str
    caption: str
    note: str


def draw(sections: Mapping[str, Sequence[Example]], *, per_row: int = 10) -> bytes:
    """Return a sheet as PNG: a heading for every section, then its tiles, `per_row` beside each other; unreadable pictures stay grey."""
    files = _read_files(example for examples in sections.values() for example in examples)
    heights = [_TITLE_HEIGHT + -(-len(examples) // per_row) * (_TILE + _TEXT_HEIGHT) for examples in sections.values()]
    sheet = Image.new("RGB", (_MARGIN + per_row * (_TILE + _MARGIN), sum(heights) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(15), ImageFont.load_default(10)
    top = 0
    for (heading, examples), height in zip(sections.items(), heights, strict=True):
        pen.text((_MARGIN, top + 4), to_ascii(heading), fill=_INK, font=title)
        for number, example in enumerate(examples):
            left = _MARGIN + number % per_row * (_TILE + _MARGIN)
            above = top + _TITLE_HEIGHT + number // per_row * (_TILE + _TEXT_HEIGHT)
            sheet.paste(_tile(files.get(_place(example), b"")), (left, above))
            below = above + _TILE + 2
            lines = textwrap.wrap(to_ascii(example.caption), _LETTERS_PER_LINE)[:_LINES_OF_CAPTION] or ["(no caption)"]
            pen.text((left, below), to_ascii(example.note)[:_LETTERS_PER_LINE], fill=_GREY, font=small)
            pen.multiline_text((left, below + _NOTE_HEIGHT), "\n".join(lines), fill=_INK, font=small, spacing=1)
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def find_extremes(pool: Pool, value: str, num_samples: int, *, where: str = "true") -> dict[str, list[Example]]:
    """Return the rows with a picture where a SQL value over the pool is highest and lowest, by heading; ties are broken by uid.

    Raises InputError where no row has a value.
    """
    sections = {}
    with Catalog(pool) as catalog:
        for end, order in (("highest", "DESC"), ("lowest", "ASC")):
            rows = catalog.sql(
                f"SELECT shard, key, alt_text, ({value}) AS value FROM pool "
                f"WHERE status = '{STATUS_SUCCESS}' AND ({value}) IS NOT NULL AND ({where}) "
                f"ORDER BY value {order}, uid LIMIT {num_samples}"
            ).fetchall()
            sections[f"{end} {value}"] = [
                Example(pool=pool, shard=shard, key=key, caption=caption or "", note=_format(found))
                for shard, key, caption, found in rows
            ]
    if not any(sections.values()):
        raise InputError(f"no row with a picture has a value of {value!r}; `winnow status` shows what is annotated")
    return sections


def find_contaminated(pool: Pool, against: Pool, num_samples: int, *, label: str) -> dict[str, list[Example]]:
    """Return the contaminated rows of a pool, each followed by its reference; those that differ most come first.

    Raises InputError where nothing is contaminated, or the references are not in `against`.
    """
    with Catalog(pool) as catalog:
        if label not in catalog.labels:
            raise InputError(
                f"{pool.root} has no annotation {label!r}; make it with `winnow annotate --pool {pool.root} decontaminate:KEY=VALUE,...` "
                "(`winnow operators` says what it needs), or name another with --label"
            )
        rows = catalog.sql(
            f"SELECT shard, key, alt_text, {label}.contamination_reference AS reference, "
            f"{label}.contamination_hash_distance AS bits, {label}.contamination_cosine AS cosine FROM pool "
            f"WHERE {label}.is_contaminated ORDER BY coalesce(bits, 64) DESC, cosine, uid LIMIT {num_samples}"
        ).fetchall()
    if not rows:
        raise InputError(f"no row of {pool.root} is contaminated by {label}")
    with Catalog(against) as catalog:
        references = {
            uid: (shard, key, caption)
            for uid, shard, key, caption in catalog.sql("SELECT uid, shard, key, alt_text FROM pool").fetchall()
        }
    pairs = []
    for shard, key, caption, reference, bits, cosine in rows:
        if reference not in references:
            raise InputError(
                f"{against.root} has no row {reference}, which {label} found; give the pool it was made with"
            )
        measured = [f"{bits} bits" if bits is not None else "", f"cosine {cosine:.3f}" if cosine is not None else ""]
        pairs.append(
            Example(pool=pool, shard=shard, key=key, caption=caption or "", note=", ".join(filter(None, measured)))
        )
        shard, key, caption = references[reference]
        pairs.append(Example(pool=against, shard=shard, key=key, caption=caption or "", note=f"reference {key}"))
    return {f"{label}: a picture of the pool, then its reference": pairs}


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _place(example: Example) -> tuple[str, int, str]:
    return example.pool.root, example.shard, example.key


def _read_files(examples: Iterable[Example]) -> Mapping[tuple[str, int, str], bytes]:
    """Return the image files of the examples, one pass over the headers of each tar."""
    wanted: dict[tuple[str, int], set[str]] = defaultdict(set)
    pools = {}
    for example in examples:
        wanted[example.pool.root, example.shard].add(example.key)
        pools[example.pool.root] = example.pool
    files = {}
    for (root, shard), keys in wanted.items():
        pool = pools[root]
        with pool.open(pool.shard_tar(pool.shard_header(shard))) as file:
            for key, member in index_images(file).items():
                if key in keys:
                    file.seek(member.offset)
                    files[root, shard, key] = file.read(member.size)
    return files


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


def to_ascii(text: str) -> str:
    """Return text in the letters that the font has: accents are dropped, and so are other scripts."""
    # The one font that Pillow brings along has no accents.
    plain = text.replace("ß", "ss").replace("œ", "oe").replace("Œ", "Oe")
    return unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
