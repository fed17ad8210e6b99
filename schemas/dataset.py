"""A dataset: `index.json`, and beside it one Parquet (and, unless it is a view, one tar) per shard.

The sidecar Parquet holds one row per sample in tar order: identity, captions, weight, and where each member's bytes lie in the tar.
Byte offsets stay out of `index.json` because a hundred million of them do not fit a JSON file a trainer could open.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from schemas.errors import StaleDatasetError

INDEX_FILE = "index.json"
INDEX_FORMAT = "winnow-dataset"
INDEX_VERSION = 1

# First columns of every sidecar; caption columns (string, or list<string> for several rewrites) follow.
# A member's `_offset` is the first byte of its data in the tar, `_bytes` its length; null where the tar has no such member.
SIDECAR_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("uid", pa.string()),
    ("key", pa.string()),
    ("url", pa.string()),
    ("weight", pa.float64()),
    ("image_suffix", pa.string()),
    ("image_offset", pa.int64()),
    ("image_bytes", pa.int64()),
    ("json_offset", pa.int64()),
    ("json_bytes", pa.int64()),
    ("txt_offset", pa.int64()),
    ("txt_bytes", pa.int64()),
)


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard of a dataset; `tar` and `parquet` are relative to the index, or absolute (a view over imported tars)."""

    tar: str
    parquet: str
    num_samples: int
    tar_bytes: int
    tar_sha256: str
    parquet_sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """`index.json`; its existence means that the dataset is complete."""

    name: str
    fingerprint: str
    kind: str  # "build": own tars; "view": the pool's tars
    num_samples: int
    captions: Mapping[str, float]  # caption column -> probability
    shards: Sequence[ShardEntry]
    selection: Mapping[str, object] = field(default_factory=dict)  # the selection.json it was made from

    def to_json(self) -> str:
        """Return the text of `index.json`: the same bytes for the same dataset."""
        return (
            json.dumps({"format": INDEX_FORMAT, "version": INDEX_VERSION, **asdict(self)}, indent=2, ensure_ascii=True)
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str, *, path: str) -> "DatasetIndex":
        """Read `index.json`; `path` names the file in errors."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise StaleDatasetError(f"{path} is not JSON ({error}); build the dataset again") from error
        if not isinstance(content, dict) or content.get("format") != INDEX_FORMAT:
            raise StaleDatasetError(f"{path} is not a Winnow dataset index; expected format {INDEX_FORMAT!r}")
        if content.get("version") != INDEX_VERSION:
            raise StaleDatasetError(
                f"{path} has version {content.get('version')!r}, this release reads {INDEX_VERSION}; build the dataset again"
            )
        try:
            values = {
                key: content[key] for key in ("name", "fingerprint", "kind", "num_samples", "captions", "selection")
            }
            return cls(**values, shards=tuple(ShardEntry(**entry) for entry in content["shards"]))
        except (KeyError, TypeError) as error:
            raise StaleDatasetError(f"{path} is incomplete ({error}); build the dataset again") from error
