"""Makes evaluation tasks of a Winnow dataset: retrieval on its pairs; given a column that names a class, classification; given wrong captions, composition."""

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError
from train.captions import FALLBACK_COLUMN, Caption
from train.evaluate.task import (
    CompositionTask,
    EvaluationData,
    Groups,
    ImageSet,
    ProbeTask,
    RetrievalTask,
    Task,
    ZeroShotTask,
)
from train.evaluate.zeroshot import DEFAULT_TEMPLATES
from train.evaluation import EvaluationOptions
from train.index import Dataset, caption_columns
from train.reader import ImageReader

logger = logging.getLogger(__name__)

_READ_ROWS = 1024
_TEST_PART = 5


def read_dataset(
    path: str, options: EvaluationOptions | None = None, *, captions: Mapping[str, float] | None = None
) -> EvaluationData:
    """Open a dataset for evaluation.

    The captions of an image are its texts in every column of the caption mixture, and those of the rows whose image has the same bytes;
    samples without any text are left out of retrieval. Weights play no part. The label, group and relevance columns of `options` are columns
    that the sidecars carry, or else the member JSON; an image is as relevant to a text as the best of the rows that pair them. The distinct labels, sorted, are the class names. A probe is fitted on four fifths of the different
    images, drawn by their uids, and tested on the others.
    """
    wanted = options or EvaluationOptions()
    dataset = Dataset.open(path, captions=captions)
    table = dataset.table
    images = ImageSet(
        tars=dataset.tars,
        shards=table.shard.astype(np.int64),
        offsets=table.offset.astype(np.int64),
        sizes=table.size.astype(np.int64),
    )
    groups = _group_equal_images(images)
    texts = [_rows_of_texts(dataset, rows) for rows in groups]
    kept = [number for number, own in enumerate(texts) if own]
    if not kept:
        raise InputError(f"{path} has no captions in {', '.join(dataset.mixture.columns)}: nothing to retrieve")
    if len(kept) < len(groups):
        logger.warning("images without a caption are left out dataset=%s images=%d", path, len(groups) - len(kept))
    columns = [column for column in (wanted.label_column, wanted.group_column, wanted.relevance_column) if column]
    values = _read_values(dataset, images, columns) if columns else {}
    first_rows = [groups[number][0] for number in kept]
    tasks: list[Task] = [
        RetrievalTask(
            images=images.take(first_rows),
            captions=[list(texts[number]) for number in kept],
            groups=_split(values, wanted.group_column, first_rows),
            grades=_grade(dataset, values, wanted.relevance_column, [texts[number] for number in kept]),
        )
    ]
    if wanted.label_column:
        tasks += _classify(dataset, images, groups, values, wanted)
    if wanted.negatives:
        tasks.append(_composition(dataset, images, wanted.negatives))
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


def _rows_of_texts(dataset: Dataset, rows: Sequence[int]) -> dict[str, list[int]]:
    """Return the different texts of some rows, and the rows that have each; the web text stands in where the mixture's columns are all empty."""
    mixture = dataset.mixture
    wanted = [column for column, share in zip(mixture.columns, mixture.probabilities, strict=True) if share > 0]
    for columns in (wanted, [FALLBACK_COLUMN]):
        found: dict[str, list[int]] = {}
        for row in rows:
            values = dict(zip(mixture.columns, dataset.table.captions(row), strict=True))
            for column in columns:
                for text in _texts(values.get(column)):
                    found.setdefault(text, []).append(row)
        if found:
            return found
    return {}


def _texts(caption: Caption) -> list[str]:
    values = [caption] if isinstance(caption, str) else caption or []
    return [text.strip() for text in values if text and text.strip()]


def _classify(
    dataset: Dataset,
    images: ImageSet,
    groups: Sequence[Sequence[int]],
    values: Mapping[str, Sequence[object]],
    options: EvaluationOptions,
) -> list[Task]:
    names = values[options.label_column]
    kept = [row for row, name in enumerate(names) if name is not None]
    if not kept:
        raise InputError(
            f"no sample of {dataset.root} has a value for {options.label_column!r} in its sidecars or JSON; carry the column along when downloading or building"
        )
    classnames = sorted({str(names[row]) for row in kept})
    numbers = {name: number for number, name in enumerate(classnames)}
    labels = np.array([numbers[str(names[row])] for row in kept], dtype=np.int64)
    tasks: list[Task] = [
        ZeroShotTask(
            images=images.take(kept),
            labels=labels,
            classnames=classnames,
            templates=options.templates or DEFAULT_TEMPLATES,
            groups=_split(values, options.group_column, kept),
        )
    ]
    if options.needs_training_images:
        is_test = _draw_test_rows(dataset, groups)[kept]
        if is_test.all() or not is_test.any():
            raise InputError(
                f"{dataset.root} has too few labelled images ({len(kept)}) to fit a probe on some and test it on others"
            )
        rows = np.array(kept)
        tasks.append(
            ProbeTask(
                images=images.take(rows[~is_test].tolist()),
                labels=labels[~is_test],
                test_images=images.take(rows[is_test].tolist()),
                test_labels=labels[is_test],
                classnames=classnames,
                templates=options.templates or DEFAULT_TEMPLATES,
            )
        )
    return tasks


def _draw_test_rows(dataset: Dataset, groups: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
    """Return for each row whether a probe is tested on it: a fifth of the different images, all rows of one image alike."""
    is_test = np.zeros(dataset.num_samples, dtype=np.bool_)
    for rows in groups:
        digest = hashlib.blake2b(dataset.uids[rows[0]].tobytes(), digest_size=8, person=b"probe").digest()
        is_test[list(rows)] = int.from_bytes(digest, "big") % _TEST_PART == 0
    return is_test


def _split(values: Mapping[str, Sequence[object]], column: str, rows: Sequence[int]) -> list[Groups]:
    if not column:
        return []
    found = [values[column][row] for row in rows]
    if all(value is None for value in found):
        raise InputError(
            f"no sample has a value for {column!r} in its sidecars or JSON; carry the column along when downloading or building"
        )
    return [Groups(name=column, values=["" if value is None else str(value) for value in found])]


def _grade(
    dataset: Dataset, values: Mapping[str, Sequence[object]], column: str, texts: Sequence[Mapping[str, Sequence[int]]]
) -> list[dict[str, float]]:
    """Return how relevant each image is to each of its texts; a pair without a number, or with NaN, counts as 0."""
    if not column:
        return []
    grades = [_read_grade(dataset, column, row, value) for row, value in enumerate(values[column])]
    found = [{text: max(grades[row] for row in rows) for text, rows in own.items()} for own in texts]
    if not any(grade for own in found for grade in own.values()):
        raise InputError(
            f"no pair of {dataset.root} has a number above 0 for {column!r} in its sidecars or JSON; carry the column along when downloading or building"
        )
    return found


def _read_grade(dataset: Dataset, column: str, row: int, value: object) -> float:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return 0.0
    if not isinstance(value, int | float | Decimal) or not 0 <= value < math.inf:
        raise InputError(
            f"{dataset.root}: {column!r} of sample {dataset.uids[row].tobytes().hex()} is {value!r}; relevance is a number of 0 or more"
        )
    return float(value)


def _composition(dataset: Dataset, images: ImageSet, columns: Sequence[str]) -> CompositionTask:
    """Return the samples that have negatives, in columns of the sidecars; the caption is the likeliest of the mixture that there is.

    The operator `negatives` writes the kind of each into `negative_kinds`; carry both columns along when building.
    """
    negatives: list[dict[str, list[str]]] = []
    for entry in dataset.index.shards:
        location = dataset.locate(entry.parquet)
        known = caption_columns(location)
        for column in columns:
            if column not in known:
                raise InputError(f"{location} has no column of texts {column!r}; it has {', '.join(known)}")
        kinds = {column: kind for column in columns if (kind := f"{column.removesuffix('s')}_kinds") in known}
        with fsspec.open(location, "rb") as file:
            rows = pq.ParquetFile(file).read(columns=[*columns, *kinds.values()]).to_pylist()
        negatives += [_sort_negatives(row, columns, kinds) for row in rows]
    mixture = dataset.mixture
    order = sorted(range(len(mixture.columns)), key=lambda number: -mixture.probabilities[number])
    own = []
    for row in range(dataset.num_samples):
        values = dataset.table.captions(row)
        texts = [text for number in order if mixture.columns[number] not in columns for text in _texts(values[number])]
        own.append(texts[0] if texts else "")
    kept = [row for row, caption in enumerate(own) if caption and negatives[row]]
    if not kept:
        raise InputError(f"no sample of {dataset.root} has a caption and a text in {', '.join(columns)}")
    return CompositionTask(
        images=images.take(kept), captions=[own[row] for row in kept], negatives=[negatives[row] for row in kept]
    )


def _sort_negatives(
    row: Mapping[str, Caption], columns: Sequence[str], kind_columns: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return a sample's negatives by kind: what the column beside them says of each, otherwise the column's name."""
    found: dict[str, list[str]] = {}
    for column in columns:
        value, kinds = row[column], row.get(kind_columns.get(column, ""))
        if isinstance(value, list) and isinstance(kinds, list) and len(kinds) == len(value):
            for kind, text in zip(kinds, value, strict=True):
                if text and text.strip():
                    found.setdefault(str(kind), []).append(text.strip())
        elif texts := _texts(value):
            found[column] = texts
    return found


def _read_values(dataset: Dataset, images: ImageSet, columns: Sequence[str]) -> dict[str, list[object]]:
    """Return each sample's values of some columns, out of the sidecars that carry them, or else of its JSON; None where it has none."""
    found: dict[str, list[object]] = {column: [None] * len(images) for column in columns}
    reader = ImageReader(images.tars)
    row = 0
    for shard, entry in enumerate(dataset.index.shards):
        with fsspec.open(dataset.locate(entry.parquet), "rb") as file:
            parquet = pq.ParquetFile(file)
            carried = [column for column in columns if column in parquet.schema_arrow.names]
            table = parquet.read(columns=["json_offset", "json_bytes", *carried])
        stop = row + table.num_rows
        for column in carried:
            found[column][row:stop] = table[column].to_pylist()
        if len(carried) < len(columns):
            records = _read_json(reader, shard, table)
            for column in set(columns) - set(carried):
                found[column][row:stop] = [record.get(column) for record in records]
        row = stop
    reader.close()
    return {column: [None if value == "" else value for value in values] for column, values in found.items()}


def _read_json(reader: ImageReader, shard: int, table: pa.Table) -> list[Mapping[str, object]]:
    """Return the member JSON of a shard's samples; an empty one where a sample has none."""
    offsets, sizes = (
        table.column(name).fill_null(-1).to_numpy().astype(np.int64) for name in ("json_offset", "json_bytes")
    )
    records: list[Mapping[str, object]] = [{}] * len(offsets)
    rows = np.flatnonzero(offsets >= 0)
    members = reader.read(np.full(len(rows), shard, dtype=np.int64), offsets[rows], sizes[rows])
    for row, content in zip(rows.tolist(), members, strict=True):
        records[row] = json.loads(content)
    return records
