"""The columns that a dataset's sidecars carry along for training: what batches are made of, what losses read."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from curate.alignment import annotate_command, lacking_shards
from curate.store import LabelTarget, Pool
from schemas.dataset import SIDECAR_COLUMNS
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import shard_name


def find_columns(pool: Pool, names: Sequence[str], labels: Mapping[str, LabelTarget]) -> dict[str, LabelTarget | None]:
    """Return the annotation that each column belongs to, `LABEL.COLUMN`, or None for a column that the pool itself has.

    `labels` are those that a selection was made with: they go before the pool's own.

    Raises `InputError` where there is no such column and `MissingColumnsError` where shards of its annotation are unfinished: a null would
    look like a measurement.
    """
    found: dict[str, LabelTarget | None] = {}
    for name in dict.fromkeys(names):
        if name in dict(SIDECAR_COLUMNS):
            raise InputError(f"build columns name {name!r}, which every sidecar has; leave it out")
        if "." in name:
            found[name] = _find_annotation(pool, name, labels)
        else:
            for shard in pool.shards():
                _check(pool, pool.shard_parquet(shard), name, name)
            found[name] = None
    return found


def _find_annotation(pool: Pool, name: str, labels: Mapping[str, LabelTarget]) -> LabelTarget:
    label, _, column = name.rpartition(".")
    known = {**pool.labels(), **labels}
    if label not in known:
        raise InputError(
            f"build columns name {name!r}, and the pool has no annotation {label!r}; it has {', '.join(sorted(known)) or 'none'}"
        )
    target = known[label]
    shards = {shard: pool.shard_header(shard) for shard in pool.shards()}
    missing = lacking_shards(pool, target, shards)
    for shard in shards:
        if shard not in missing:
            path = pool.annotation_path(target.operator, target.fingerprint, shard)
            _check(pool, path, name, column)
    if missing:
        raise MissingColumnsError(
            f"build columns name {name!r}, which {len(missing)} of {len(shards)} shards lack, {shard_name(missing[0])} first; finish it "
            f"with `{annotate_command(pool, label, target, {})}`, or leave the column out"
        )
    return target


def _check(pool: Pool, path: str, name: str, column: str) -> None:
    schema: pa.Schema = pool.read_footer(path).schema.to_arrow_schema()
    if column not in schema.names:
        raise InputError(
            f"build columns name {name!r}, and {pool.locate(path)} has no column {column!r}; it has {', '.join(schema.names)}"
        )
