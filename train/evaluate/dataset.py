"""Makes evaluation tasks of a Winnow dataset: retrieval on its pairs and, given a column that names a class, zero-shot classification."""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from schemas.errors import InputError
from train.captions import FALLBACK_COLUMN, Caption
from train.evaluate.task import EvaluationData, ImageSet, RetrievalTask, ZeroShotTask
from train.evaluate.zeroshot import DEFAULT_TEMPLATES
from train.index import Dataset
from train.reader import ImageReader

logger = logging.getLogger(__name__)

_READ_ROWS = 1024


def read_dataset(
    path: str, *, label_column: str = "", templates: Sequence[str] = (), captions: Mapping[str, float] | None = None
) -> EvaluationData:
    """Open a dataset for evaluation.

    The captions of an image are its texts in every column of the caption mixture, and those of the rows whose image has the same bytes;
    samples without any text are left out of retrieval. Weights play no part. `label_column` names a column of the pool that the member JSON
    carries; its distinct values, sorted, are the class names.
    """
    dataset = Dataset.open(path, captions=captions)
    table = dataset.table
    images = ImageSet(
        tars=dataset.tars,
        shards=table.shard.astype(np.int64),
        offsets=table.offset.astype(np.int64),
        sizes=table.size.astype(np.int64),
    )
    groups = _group_equal_images(images)
    texts = [_distinct_texts(dataset, rows) for rows in groups]
    kept = [number for number, own in enumerate(texts) if own]
    if not kept:
        raise InputError(f"{path} has no captions in {', '.join(dataset.mixture.columns)}: nothing to retrieve")
    if len(kept) < len(groups):
        logger.warning("images without a caption are left out dataset=%s images=%d", path, len(groups) - len(kept))
    tasks: list[RetrievalTask | ZeroShotTask] = [
        RetrievalTask(
            images=images.take([groups[number][0] for number in kept]), captions=[texts[number] for number in kept]
        )
    ]
    if label_column:
        tasks.append(_zeroshot(dataset, images, label_column, templates or DEFAULT_TEMPLATES))
    return EvaluationData(name=dataset.index.name, tasks=tasks)


def _group_equal_images(images: ImageSet) -> list[list[int]]:
    """Return the rows of each different image, in order of first appearance; only images of equal length are compared."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for row, size in enumerate(images.sizes.tolist()):
        by_size[size].append(row)
    candidates = sorted(row for rows in by_size.values() if len(rows) > 1 for row in rows)
    digests: dict[int, bytes] = {}
    reader = ImageReader(images.tars)
    for start in range(0, len(candidates), _READ_ROWS):
        rows = np.array(candidates[start : start + _READ_ROWS])
        for row, data in zip(
            rows.tolist(), reader.read(images.shards[rows], images.offsets[rows], images.sizes[rows]), strict=True
        ):
            digests[row] = hashlib.sha256(data).digest()
    reader.close()
    groups: dict[bytes | int, list[int]] = {}
    for row in range(len(images)):
        groups.setdefault(digests.get(row, row), []).append(row)
    return list(groups.values())


def _distinct_texts(dataset: Dataset, rows: Sequence[int]) -> list[str]:
    """Return the texts of some rows without repeats; the web text stands in where the mixture's columns are all empty."""
    mixture = dataset.mixture
    wanted = [column for column, share in zip(mixture.columns, mixture.probabilities, strict=True) if share > 0]
    for columns in (wanted, [FALLBACK_COLUMN]):
        found: dict[str, None] = {}
        for row in rows:
            values = dict(zip(mixture.columns, dataset.table.captions(row), strict=True))
            for column in columns:
                found |= dict.fromkeys(_texts(values.get(column)))
        if found:
            return list(found)
    return []


def _texts(caption: Caption) -> list[str]:
    values = [caption] if isinstance(caption, str) else caption or []
    return [text.strip() for text in values if text and text.strip()]


def _zeroshot(dataset: Dataset, images: ImageSet, column: str, templates: Sequence[str]) -> ZeroShotTask:
    names = _read_labels(dataset, images, column)
    kept = [row for row, name in enumerate(names) if name is not None]
    if not kept:
        raise InputError(
            f"no sample of {dataset.root} has a value for {column!r} in its JSON; carry the column along when downloading"
        )
    classnames = sorted({str(names[row]) for row in kept})
    numbers = {name: number for number, name in enumerate(classnames)}
    return ZeroShotTask(
        images=images.take(kept),
        labels=np.array([numbers[str(names[row])] for row in kept], dtype=np.int64),
        classnames=classnames,
        templates=templates,
    )


def _read_labels(dataset: Dataset, images: ImageSet, column: str) -> list[object]:
    """Return each sample's value of a column, out of its JSON; None where it has none."""
    labels: list[object] = [None] * len(images)
    reader = ImageReader(images.tars)
    row = 0
    for shard, (offsets, sizes) in enumerate(_json_places(dataset)):
        rows = np.flatnonzero(offsets >= 0)
        members = reader.read(np.full(len(rows), shard, dtype=np.int64), offsets[rows], sizes[rows])
        for position, content in zip(rows.tolist(), members, strict=True):
            value = json.loads(content).get(column)
            labels[row + position] = None if value in {None, ""} else value
        row += len(offsets)
    reader.close()
    return labels


def _json_places(dataset: Dataset) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    places = []
    for entry in dataset.index.shards:
        with fsspec.open(dataset.locate(entry.parquet), "rb") as file:
            table = pq.ParquetFile(file).read(columns=["json_offset", "json_bytes"])
        offsets, sizes = (
            table.column(name).fill_null(-1).to_numpy().astype(np.int64) for name in ("json_offset", "json_bytes")
        )
        places.append((offsets, sizes))
    return places
