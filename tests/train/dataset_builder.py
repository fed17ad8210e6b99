"""Writes small datasets as `winnow build` does: tars, sidecars, index; for tests of the trainer."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.tar import TarWriter
from schemas.dataset import INDEX_FILE, SIDECAR_COLUMNS, DatasetIndex, ShardEntry


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample to write; `image` is the encoded file."""

    uid: str
    image: bytes
    captions: Mapping[str, str | list[str] | None]
    weight: float = 1.0
    suffix: str = "jpg"
    extra: Mapping[str, object] = field(default_factory=dict)  # further keys of the member JSON


def make_uid(number: int) -> str:
    """Return a uid for sample `number`."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def draw_picture(number: int, *, width: int = 80, height: int = 60) -> np.ndarray:
    """Return a smooth coloured picture of its own for each number: RGB uint8 (height, width, 3)."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [128 + 127 * np.sin(rng.uniform(1, 9) * x + rng.uniform(1, 9) * y + rng.uniform(0, 6)) for _ in range(3)]
    return np.stack(waves, axis=2).astype(np.uint8)


def encode_picture(rgb: np.ndarray, format: str = "jpeg", **options: object) -> bytes:
    """Return the picture as a file."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format, **options)
    return file.getvalue()


def make_samples(
    count: int, *, weights: Sequence[float] | None = None, size: tuple[int, int] = (80, 60)
) -> list[Sample]:
    """Return samples with an alt-text, a recaption on every third one, and up to two rewrites."""
    return [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_picture(number, width=size[0] + number % 7, height=size[1] + number % 5)),
            captions={
                "alt_text": f"alt {number}",
                "recaption": f"recaption {number}" if number % 3 == 0 else None,
                "rewrite": [f"rewrite {number}.{part}" for part in range(number % 3)],
            },
            weight=1.0 if weights is None else weights[number],
        )
        for number in range(count)
    ]


def write_dataset(
    folder: Path,
    samples: Sequence[Sample],
    *,
    shard_size: int = 16,
    captions: Mapping[str, float] | None = None,
    name: str = "tiny",
) -> Path:
    """Write a dataset into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        _write_shard(folder, f"{number:05d}", samples[start : start + shard_size])
        for number, start in enumerate(range(0, len(samples), shard_size))
    ]
    digest = hashlib.sha256("".join(entry.tar_sha256 + entry.parquet_sha256 for entry in shards).encode()).hexdigest()
    index = DatasetIndex(
        name=name,
        fingerprint=digest,
        kind="build",
        num_samples=len(samples),
        captions=captions or {"alt_text": 1.0},
        shards=shards,
    )
    (folder / INDEX_FILE).write_text(index.to_json())
    return folder


def reseal(folder: Path) -> None:
    """Make the index say what the sidecars are, after a test has changed them."""
    index = json.loads((folder / INDEX_FILE).read_text())
    for entry in index["shards"]:
        entry["parquet_sha256"] = hashlib.sha256((folder / entry["parquet"]).read_bytes()).hexdigest()
    (folder / INDEX_FILE).write_text(json.dumps(index))


def _write_shard(folder: Path, name: str, samples: Sequence[Sample]) -> ShardEntry:
    rows: list[dict[str, object]] = []
    with (folder / f"{name}.tar").open("wb") as file:
        tar = TarWriter(file)
        for number, sample in enumerate(samples):
            key = f"{name}{number:04d}"
            caption = sample.captions.get("alt_text")
            text = (caption if isinstance(caption, str) else "").encode()
            record = json.dumps({"uid": sample.uid, "caption": caption, **sample.extra}).encode()
            image_offset = tar.add(f"{key}.{sample.suffix}", sample.image)
            json_offset = tar.add(f"{key}.json", record)
            txt_offset = tar.add(f"{key}.txt", text)
            fixed = (
                sample.uid,
                key,
                f"http://example.org/{sample.uid}.{sample.suffix}",
                sample.weight,
                sample.suffix,
                image_offset,
                len(sample.image),
                json_offset,
                len(record),
                txt_offset,
                len(text),
            )
            rows.append(
                dict(zip((column for column, _ in SIDECAR_COLUMNS), fixed, strict=True)) | dict(sample.captions)
            )
        tar.close()
    kinds = {name: _caption_type(samples, name) for name in samples[0].captions}
    schema = pa.schema([*(pa.field(n, t) for n, t in SIDECAR_COLUMNS), *(pa.field(n, t) for n, t in kinds.items())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    return ShardEntry(
        tar=f"{name}.tar",
        parquet=f"{name}.parquet",
        num_samples=len(samples),
        tar_bytes=(folder / f"{name}.tar").stat().st_size,
        tar_sha256=hashlib.sha256((folder / f"{name}.tar").read_bytes()).hexdigest(),
        parquet_sha256=hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest(),
    )


def _caption_type(samples: Sequence[Sample], name: str) -> pa.DataType:
    return pa.list_(pa.string()) if any(isinstance(sample.captions[name], list) for sample in samples) else pa.string()
