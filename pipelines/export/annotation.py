"""Finds the annotations that an export reads, or says which command makes them."""

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from curate.alignment import annotate_command, lacking_shards
from curate.store import LabelTarget, Pool
from pipelines.export.source import SelectionSource
from schemas.annotation import AnnotationHeader
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import shard_name

_OPERATORS = {"image_embedding": "clip_embedding", "text_embedding": "clip_text_embedding"}


def find_embeddings(source: SelectionSource, image: str, text: str) -> tuple[str, str]:
    """Return `label.column` of the embeddings of pictures and of texts: the ones wanted, or the only ones there are; every shard must have both.

    Raises `MissingColumnsError` with the command that makes one, and `InputError` where several labels have it.
    """
    return (
        find_embedding(source, "image_embedding", image),
        find_embedding(source, "text_embedding", text),
    )


def find_embedding(source: SelectionSource, column: str, wanted: str) -> str:
    """As `find_embeddings`, of one of them: `image_embedding` or `text_embedding`."""
    pool, operator = source.pool, _OPERATORS[column]
    schemas = read_schemas(source)
    flag = f"--{column.replace('_', '-')}"
    if wanted:
        label, _, name = wanted.rpartition(".")
        if label not in schemas or name not in schemas[label].names:
            raise MissingColumnsError(
                f"{flag} is {wanted!r}, which {pool.root} does not have; make it with\n  winnow annotate --pool {pool.root} "
                f"'{operator}:model=MODEL,label={label or operator}'"
            )
        found = [wanted]
    else:
        found = [f"{label}.{column}" for label, schema in schemas.items() if column in schema.names]
    if not found:
        raise MissingColumnsError(
            f"no annotation in {pool.root} has {column}; make it with\n  winnow annotate --pool {pool.root} '{operator}:model=MODEL'"
        )
    if len(found) > 1:
        raise InputError(f"{', '.join(found)} are embeddings of different models or texts; say which with {flag}")
    require_complete(source, found[0].rpartition(".")[0])
    return found[0]


def read_schemas(source: SelectionSource) -> dict[str, pa.Schema]:
    """Return the columns of every label of the selection and of its pool that has a file."""
    found = {}
    for label, target in sorted(source.labels.items()):
        path = _first_file(source.pool, target)
        if path:
            with source.pool.open(path) as file:
                found[label] = pq.read_schema(file).remove_metadata()
    return found


def require_complete(source: SelectionSource, label: str) -> None:
    """Raise `MissingColumnsError`, with the command that completes it, unless every shard has a current annotation of the label."""
    pool, target = source.pool, source.labels[label]
    shards = {shard: pool.shard_header(shard) for shard in pool.shards()}
    missing = lacking_shards(pool, target, shards)
    if missing:
        command = annotate_command(pool, label, target, read_parameters(pool, target))
        raise MissingColumnsError(
            f"{label} has no current annotation of {len(missing)} of {len(shards)} shards ({shard_name(missing[0])} first); run\n"
            f"  {command}"
        )


def read_header(pool: Pool, target: LabelTarget) -> AnnotationHeader | None:
    """Return the header of one of an annotation's files, or None where it has none."""
    path = _first_file(pool, target)
    return AnnotationHeader.from_metadata(pool.read_footer(path).metadata) if path else None


def read_parameters(pool: Pool, target: LabelTarget) -> Mapping[str, object]:
    """Return the parameters that an annotation was made with, a model by its revision or its weights."""
    header = read_header(pool, target)
    found: dict[str, object] = json.loads(header.parameters) if header else {}
    return found


def _first_file(pool: Pool, target: LabelTarget) -> str:
    folder = pool.annotation_folder(target.operator, target.fingerprint)
    names = pool.list_names(folder, ".parquet")
    return f"{folder}/{names[0]}" if names else ""
