"""A folder that `datasets.load_dataset` loads and the Hub shows: Parquet with pictures, and a card that states the columns' types."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from curate.executor import Executor
from pipelines.card import describe_dataset, read_facts
from pipelines.export.parquet import IMAGE_TYPE, make_schema, name_type, write_parquet
from pipelines.export.source import DatasetSource
from pipelines.export.target import ExportReport, Target
from schemas.progress import Progress

FORMAT = "hugging-face"
CARD_FILE = "README.md"
_DATA = "data/"
# The Hub's own classes of size.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
)


def export(
    source: DatasetSource, out: str, *, executor: Executor, progress: Progress, shard_size: int = 5_000
) -> ExportReport:
    """Write a dataset to the folder `out`: `data/train-*.parquet` and `README.md`."""
    card = describe_dataset(source.index, read_facts(source.store, source.index))
    target = Target(out, FORMAT, {**source.identity(), "shard_size": shard_size, "card": card})
    if found := target.find():
        return found
    results = write_parquet(target, source, shard_size, _DATA, executor, progress)
    front = _front_matter(source, make_schema(source), results)
    target.write(CARD_FILE, f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{card}".encode())
    command = f"datasets.load_dataset({target.store.root!r}, split='train')"
    return target.publish(source.name, source.num_samples, notes={"load": command})


def _front_matter(source: DatasetSource, schema: pa.Schema, results: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    num_bytes = sum(result["memory_bytes"] for result in results)
    download = sum(int(entry["bytes"]) for result in results for entry in result["files"].values())
    features = [{"name": field.name, **_feature(field.type)} for field in schema]
    split = {"name": "train", "num_bytes": num_bytes, "num_examples": source.num_samples}
    size = next((name for most, name in _SIZES if source.num_samples < most), "10B<n<100B")
    return {
        "pretty_name": source.name,
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification"],
        "size_categories": [size],
        "dataset_info": {
            "features": features,
            "splits": [split],
            "download_size": download,
            "dataset_size": num_bytes,
        },
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": f"{_DATA}train-*"}]}],
    }


def _feature(kind: pa.DataType) -> dict[str, object]:
    if kind == IMAGE_TYPE:
        return {"dtype": "image"}
    if pa.types.is_list(kind):
        inner = _feature(kind.value_type)
        return {"sequence": inner.get("dtype", inner)}
    return {"dtype": name_type(kind)}
