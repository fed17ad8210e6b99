"""A small pool as a fetch leaves it, built from drawn pictures: the material of most tests.

Every shard of twelve rows or more holds the same cases, so that a test can name a row:

    row 1  failed download (404)          row 5  null caption
    row 3  failed resize                  row 6  the picture and the caption of row 0 again
    row 4  a file cut off in the middle   row 7  a picture between two white bars
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from curate.store import Pool
from curate.tar import TarWriter
from schemas.sample import (
    SHARD_DIGEST_KEY,
    STATUS_FAILED_DOWNLOAD,
    STATUS_FAILED_RESIZE,
    STATUS_SUCCESS,
    UID_DIGEST_KEY,
    sample_key,
    sample_schema,
    shard_digest,
    shard_name,
)
from schemas.uid import digest_uids, sample_uid

CORRUPT_ROW = 4
FAILED_ROWS = (1, 3)
NULL_CAPTION_ROW = 5
COPY_ROW = 6
BORDER_ROW = 7

_COLOURS = {"red": (200, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 190), "yellow": (230, 200, 50)}
_SHAPES = ("circle", "square")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row to be written; `image` is None where the download failed."""

    url: str
    caption: str | None
    image: bytes | None
    status: str = STATUS_SUCCESS
    error_message: str | None = None


def draw(colour: tuple[int, int, int], shape: str, *, seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Return a noisy picture with one shape on it; the same arguments give the same pixels."""
    random = np.random.default_rng(seed)
    noise = random.integers(90, 150, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    x, y = int(random.integers(5, width // 2)), int(random.integers(5, height // 2))
    box = (x, y, x + width // 3, y + width // 3)
    canvas = ImageDraw.Draw(picture)
    (canvas.ellipse if shape == "circle" else canvas.rectangle)(box, fill=colour)
    return picture


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """Return the picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_rows(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Return `num_rows` rows with the special cases of the module's docstring (as far as they fit)."""
    rows = []
    for index in range(num_rows):
        colour = list(_COLOURS)[index % len(_COLOURS)]
        shape = _SHAPES[(index // 2) % len(_SHAPES)]
        picture = draw(_COLOURS[colour], shape, seed=seed * 10_000 + index, width=80 + 8 * (index % 5))
        rows.append(
            Row(
                url=f"https://example.org/{seed}/{index}.jpg",
                caption=f"a {colour} {shape} number {index} on grey ground",
                image=jpeg(picture),
            )
        )
    special = {
        1: Row(
            url=f"https://example.org/{seed}/1.jpg",
            caption="a picture that is gone",
            image=None,
            status=STATUS_FAILED_DOWNLOAD,
            error_message="HTTP Error 404: Not Found",
        ),
        3: Row(
            url=f"https://example.org/{seed}/3.jpg",
            caption="no picture at all",
            image=None,
            status=STATUS_FAILED_RESIZE,
            error_message="Image decoding error",
        ),
    }
    if num_rows > BORDER_ROW:
        whole = rows[CORRUPT_ROW].image
        assert whole is not None
        special[CORRUPT_ROW] = Row(
            url=rows[CORRUPT_ROW].url, caption=rows[CORRUPT_ROW].caption, image=whole[: len(whole) // 2]
        )
        special[NULL_CAPTION_ROW] = Row(
            url=rows[NULL_CAPTION_ROW].url, caption=None, image=rows[NULL_CAPTION_ROW].image
        )
        special[COPY_ROW] = Row(url=rows[COPY_ROW].url, caption=rows[0].caption, image=rows[0].image)
        framed = Image.new("RGB", (100, 100), (255, 255, 255))
        framed.paste(draw((200, 30, 40), "square", seed=seed, width=60, height=100), (20, 0))
        special[BORDER_ROW] = Row(url=rows[BORDER_ROW].url, caption="IMG_0042.JPG", image=jpeg(framed))
    return [special.get(index, row) for index, row in enumerate(rows)]


def write_shard(pool: Pool, shard: int, rows: Sequence[Row], *, shard_size: int | None = None) -> None:
    """Write one shard as a fetch does: tar, statistics, Parquet last."""
    size = shard_size or len(rows)
    columns: dict[str, list[object]] = {name: [] for name in sample_schema().names}
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    for index, row in enumerate(rows):
        key = sample_key(shard, index, size)
        values = {
            "uid": sample_uid(row.url, row.caption),
            "num_occurrences": 1,
            "caption": row.caption,
            "url": row.url,
            "key": key,
            "status": row.status,
            "error_message": row.error_message,
            "width": None,
            "height": None,
            "original_width": None,
            "original_height": None,
            "exif": None,
            "sha256": None,
        }
        if row.image is not None:
            with Image.open(io.BytesIO(row.image)) as picture:
                values |= {"width": picture.width, "height": picture.height}
                values |= {"original_width": 2 * picture.width, "original_height": 2 * picture.height}
            values |= {"exif": "{}", "sha256": hashlib.sha256(row.image).hexdigest()}
            writer.add(f"{key}.jpg", row.image)
            writer.add(f"{key}.json", json.dumps(values, indent=4).encode())
            writer.add(f"{key}.txt", (row.caption or "").encode())
        for name, value in values.items():
            columns[name].append(value)
    writer.close()
    table = pa.table(columns, schema=sample_schema())
    uids = table.column("uid").to_pylist()
    metadata = {SHARD_DIGEST_KEY: shard_digest(table).encode(), UID_DIGEST_KEY: digest_uids(uids).encode()}
    pool.commit_bytes(f"shards/{shard_name(shard)}.tar", buffer.getvalue())
    successes = sum(row.status == STATUS_SUCCESS for row in rows)
    pool.commit_json(f"shards/{shard_name(shard)}_stats.json", {"count": len(rows), "successes": successes})
    pool.commit_table(pool.shard_parquet(shard), table.replace_schema_metadata(metadata))


def make_pool(root: Path, *, num_shards: int = 2, shard_size: int = 12, seed: int = 0) -> Pool:
    """Build a pool under `root`; the same arguments give the same bytes."""
    pool = Pool(root)
    for shard in range(num_shards):
        write_shard(pool, shard, make_rows(shard_size, seed=seed + shard), shard_size=shard_size)
    return pool
