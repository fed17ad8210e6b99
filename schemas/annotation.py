"""An annotation file: one row per sample of its shard, in the shard's order, with the identity of what made it.

Columns: `uid`, the operator's own columns, `error` (null where the row went well).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

UID_COLUMN = "uid"
ERROR_COLUMN = "error"
HEADER_PREFIX = "winnow."


@dataclass(frozen=True, kw_only=True)
class AnnotationHeader:
    """The schema metadata of an annotation file."""

    operator: str
    version: str
    fingerprint: str
    parameters: str  # JSON of the parameters, for people and for `winnow status`
    shard_digest: str  # of the shard the rows were computed from
    uid_digest: str  # equal digests allow a join by position
    pool_digest: str = ""  # pool-wide operators only: the identity of every shard they saw

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the header as Parquet key-value metadata."""
        return {f"{HEADER_PREFIX}{key}".encode(): value.encode() for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> "AnnotationHeader | None":
        """Return the header stored in a file's metadata, or None where the file is not an annotation."""
        found = {f.name: (metadata or {}).get(f"{HEADER_PREFIX}{f.name}".encode()) for f in fields(cls)}
        texts = {name: value.decode() for name, value in found.items() if value is not None}
        return cls(**texts) if len(texts) == len(found) else None


def annotation_schema(writes: pa.Schema) -> pa.Schema:
    """Return the file schema of an operator that adds the columns `writes`."""
    return pa.schema([pa.field(UID_COLUMN, pa.string()), *writes, pa.field(ERROR_COLUMN, pa.string())])
