"""near_dedup over many hashes, and how many copies of real photos it finds by transform, beside imagehash and brute force.

python -m benchmarks near_dedup                              # 10 million hashes, and one million
python -m benchmarks.bench_near_dedup --num-hashes 1000000
"""

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.memory import measure
from curate.colours import colour_distance
from curate.operators.near_dedup import NearDedup

MAX_DISTANCE = 6
PEER_ROWS = 100_000
NUM_PHOTOS = 300
Transform = Callable[[Any], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-hashes", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    lines = [
        f"Whole operator, max_distance {MAX_DISTANCE}, 5 % planted neighbours (1 to 6 bits), 2 workers; colour layouts included.",
        "",
        "| hashes | tool | seconds | GiB of the largest process | pairs or copies found |",
        "|---|---|---|---|---|",
    ]
    for count in (options.num_hashes // 10, options.num_hashes):
        cost = measure(run_winnow, count)
        lines.append(
            f"| {count:,} | winnow near_dedup | {cost.seconds:.1f} | {cost.gib:.2f} | {cost.result:,} copies |"
        )
    for name, function in (("numpy brute force", run_brute_force), ("faiss IndexBinaryFlat range search", run_faiss)):
        cost = measure(function, PEER_ROWS)
        lines.append(f"| {PEER_ROWS:,} | {name} | {cost.seconds:.1f} | {cost.gib:.2f} | {cost.result:,} pairs |")
    cost = measure(run_pairs, PEER_ROWS)
    lines.append(
        f"| {PEER_ROWS:,} | winnow near_pairs, one core | {cost.seconds:.2f} | {cost.gib:.2f} | {cost.result:,} pairs |"
    )
    lines += ["", *table_of_transforms()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def make_hashes(count: int) -> np.ndarray:
    """Return hashes, a twentieth of them another's with one to six bits changed."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    num_planted = count // 20
    changes = np.zeros(num_planted, np.uint64)
    for bit in range(6):
        flipped = np.uint64(1) << random.integers(0, 64, num_planted, dtype=np.uint64)
        changes |= np.where(random.integers(1, 7, num_planted) > bit, flipped, np.uint64(0))
    hashes[:num_planted] = hashes[random.integers(num_planted, count, num_planted)] ^ changes
    return hashes


def run_winnow(count: int) -> int:
    """Run the operator over a relation in DuckDB, as `winnow annotate` does; return the number of copies."""
    import duckdb

    from curate.executor import Executor
    from curate.pool_work import PoolWork

    layout = b"\x80" * 128
    numbers = pa.array(np.arange(count))
    rows = pa.table({
        "shard": pa.array(np.arange(count) // 10_000, pa.int32()),
        "row": pa.array(np.arange(count) % 10_000, pa.int32()),
        "uid": pc.utf8_lpad(numbers.cast(pa.string()), 32, "0"),
        "image_perceptual_hash": make_hashes(count),
        "original_width": pa.array(np.full(count, 640, np.int32)),
        "original_height": pa.array(np.full(count, 480, np.int32)),
        "status": pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), ["success"]),
    })
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection, Executor(num_workers=2) as executor:
        path = f"{folder}/rows.parquet"
        pq.write_table(rows, path)
        del rows, numbers
        connection.execute(f"SET memory_limit = '2GB'; SET temp_directory = '{folder}/spill'")
        relation = connection.sql(
            f"SELECT *, unhex('{layout.hex()}') AS image_colour_layout, NULL::VARCHAR AS alt_text, "
            f"NULL::VARCHAR AS error_message FROM '{path}'"
        )
        tables = NearDedup(max_distance=MAX_DISTANCE).annotate(relation, PoolWork(Path(folder), executor))
        return sum(int(pc.sum(table.column("is_near_duplicate").cast(pa.int64())).as_py()) for table in tables)


def run_pairs(count: int) -> int:
    """Return the number of pairs by banded search, in one process."""
    from curate.hamming import near_pairs

    return len(near_pairs(np.unique(make_hashes(count)), MAX_DISTANCE)[0])


def run_brute_force(count: int) -> int:
    """Return the number of pairs by comparing every hash with every other."""
    hashes = np.unique(make_hashes(count))
    return sum(
        int((np.bitwise_count(hashes[row] ^ hashes[row + 1 :]) <= MAX_DISTANCE).sum()) for row in range(len(hashes))
    )


def run_faiss(count: int) -> int:
    """Return the number of pairs by faiss's exhaustive binary index."""
    import faiss

    hashes = np.unique(make_hashes(count)).view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(hashes)
    limits, _, _ = index.range_search(hashes, MAX_DISTANCE + 1)  # faiss keeps what is below
    return (int(limits[-1]) - len(hashes)) // 2


def table_of_transforms() -> list[str]:
    """Return precision and recall of copies of real photos by transform, at the same radius for both hashes."""
    from PIL import Image

    folder = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    paths = [
        p
        for kind in ("coco", "grocery", "openstax")
        for p in sorted(folder.glob(f"{kind}/**/*.jpg"))[: NUM_PHOTOS // 3]
    ]
    if not paths:
        return [f"No real photos in {folder}: the table of transforms was left out."]
    originals = [Image.open(path).convert("RGB") for path in paths]
    hashers = {"imagehash.phash": _imagehash, "winnow, hash only": _ours, "winnow, hash and colours": _ours}
    lines = [
        f"{len(paths)} real photos and figures, one copy of each per transform, Hamming radius {MAX_DISTANCE}; recall of the copies / precision of "
        "the pairs between copies and originals.",
        "",
        "| transform | " + " | ".join(hashers) + " |",
        "|---|" + "---|" * len(hashers),
    ]
    base = {name: hasher(originals) for name, hasher in hashers.items()}
    for name, transform in transforms().items():
        copies = [transform(picture) for picture in originals]
        cells = []
        for hasher_name, hasher in hashers.items():
            is_alike = _alike(base[hasher_name], hasher(copies), colours=hasher_name.endswith("colours"))
            right = int(np.diagonal(is_alike).sum())
            cells.append(f"{right / len(copies):.3f} / {right / max(1, int(is_alike.sum())):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *table_of_known_copies(folder)]


def table_of_known_copies(folder: Path) -> list[str]:
    """Return which of the known edits of one photo are within the radius of it."""
    from PIL import Image

    lines = [
        "| known copies | found by imagehash | by hash | by hash and colours | with flips |",
        "|---|---|---|---|---|",
    ]
    for name in ("bridge-mods", "dih"):
        paths = sorted((folder / "copies" / name).glob("*.jpg"))
        pictures = [Image.open(path).convert("RGB") for path in paths]
        theirs, ours = _imagehash(pictures), _ours(pictures)
        found = [_alike(theirs, theirs)[0], _alike(ours, ours)[0], _alike(ours, ours, colours=True)[0]]
        mirrored = (ours[0] ^ np.uint64(0x5555_5555_5555_5555), ours[1])
        flips = found[1] | _alike(mirrored, ours)[0]
        counts = [f"{int(row.sum()) - 1} of {len(paths) - 1}" for row in (*found, flips)]
        lines.append(f"| {name} | {' | '.join(counts)} |")
    return lines


def transforms() -> dict[str, Transform]:
    """Return what other sites do to a picture."""
    from PIL import Image, ImageDraw, ImageEnhance, ImageOps

    def recompress(quality: int) -> Transform:
        def apply(picture: Any) -> Any:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

        return apply

    def crop(share: float) -> Transform:
        def apply(picture: Any) -> Any:
            x, y = int(picture.width * share), int(picture.height * share)
            return picture.crop((x, y, picture.width - x, picture.height - y))

        return apply

    def watermark(picture: Any) -> Any:
        marked = picture.copy()
        size = max(12, picture.width // 12)
        from PIL import ImageFont

        place = (picture.width // 8, picture.height - 2 * size)
        ImageDraw.Draw(marked).text(place, "example stock", fill=(255, 255, 255), font=ImageFont.load_default(size))
        return marked

    def shift_colours(picture: Any) -> Any:
        red, green, blue = picture.split()
        return Image.merge(
            "RGB", (red.point(lambda v: min(255, int(v * 1.15))), green, blue.point(lambda v: int(v * 0.85)))
        )

    return {
        "recompressed, quality 75": recompress(75),
        "recompressed, quality 30": recompress(30),
        "resized to a half": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
        "resized to 128 x 128": lambda picture: picture.resize((128, 128)),
        "watermarked": watermark,
        "cropped by 2 % at each side": crop(0.02),
        "cropped by 5 % at each side": crop(0.05),
        "bordered by 5 %": lambda picture: ImageOps.expand(picture, picture.width // 20, (255, 255, 255)),
        "brighter by 15 %": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
        "colours shifted by 15 %": shift_colours,
        "grey": lambda picture: picture.convert("L").convert("RGB"),
        "mirrored": ImageOps.mirror,
    }


def _imagehash(pictures: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    import imagehash

    bits = np.array([imagehash.phash(picture).hash.reshape(-1) for picture in pictures])
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1), None


def _ours(pictures: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    from curate.images import to_column
    from curate.luma import to_luma, to_luma_column
    from curate.operators.colour_layout import ColourLayout
    from curate.operators.perceptual_hash import PerceptualHash

    arrays = [np.asarray(picture) for picture in pictures]
    luma = pa.table({"image_luma": to_luma_column([to_luma(array) for array in arrays])})
    hashes = PerceptualHash().load()(luma)["image_perceptual_hash"]
    layouts = ColourLayout().load()(pa.table({"image": to_column(arrays)}))["image_colour_layout"]
    colours = np.frombuffer(b"".join(pa.array(layouts).to_pylist()), np.uint8).reshape(len(arrays), -1)
    return np.asarray(pa.array(hashes)), colours


def _alike(left: tuple[Any, Any], right: tuple[Any, Any], *, colours: bool = False) -> np.ndarray:
    is_alike = np.bitwise_count(left[0][:, None] ^ right[0][None, :]) <= MAX_DISTANCE
    if colours:
        rows, columns = np.nonzero(is_alike)
        is_alike[rows, columns] = colour_distance(left[1][rows], right[1][columns]) <= NearDedup().max_colour_distance
    return np.asarray(is_alike)


if __name__ == "__main__":
    raise SystemExit(main())
