"""What may be handed on where pictures may not: uids, URLs, hashes, captions and scores, with a recipe that rebuilds the set.

    winnow run DIR/recipe.yaml --input DIR/samples --pool POOL --out OUT

fetches every picture again, politely and with the opt-outs of that day, checks its sha256, and selects and builds with the same uids,
captions and weights.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from curate.executor import Executor
from curate.fetch.ingest import SETTINGS_FILE
from curate.pack import caption_key
from curate.selection import ELEMENTS
from curate.store import Store
from pipelines.export.annotation import read_schemas, require_complete
from pipelines.export.source import SelectionSource, name_columns
from pipelines.export.target import ExportReport, Files, Part, Target, split_evenly, write_file
from schemas.errors import InputError
from schemas.progress import Progress

FORMAT = "share"
RECIPE_FILE = "recipe.yaml"
SAMPLES = "samples"
_OWN: Mapping[str, str] = {"url": "url", "sha256": "sha256", "caption": "caption"}
# The name of the weights in the new pool, where `weight` alone could be a source's own column.
WEIGHT = "shared_weight"


def export(
    source: SelectionSource,
    out: str,
    *,
    executor: Executor,
    progress: Progress,
    columns: Sequence[str] = (),
    shard_size: int = 1_000_000,
) -> ExportReport:
    """Write a selection without its pictures to the folder `out`.

    `columns` are the scores to hand on, as `label.column`; empty: every number, flag and text of the labels that the selection read.
    Raises `InputError` where a sample has no URL to be fetched from.
    """
    captions = _caption_columns(source)
    scores = _score_columns(source, columns, captions)
    wanted = {**_OWN, **captions, **name_columns(scores)}
    for label in sorted({name.rpartition(".")[0] for name in wanted.values() if "." in name}):
        require_complete(source, label)
    recipe = _make_recipe(source)
    used = {label: target.fingerprint for label, target in sorted(source.labels.items())}
    target = Target(
        out,
        FORMAT,
        {**source.identity(), "columns": wanted, "labels": used, "recipe": recipe, "shard_size": shard_size},
    )
    if found := target.find():
        return found
    parts = split_evenly(source.num_samples, shard_size)
    target.run(partial(_write, source, wanted, len(parts)), parts, executor, progress)
    target.write(RECIPE_FILE, recipe.encode())
    command = (
        f"winnow run {target.store.root}/{RECIPE_FILE} --input {target.store.root}/{SAMPLES} --pool POOL --out OUT"
    )
    notes = {"columns": ", ".join(["uid", WEIGHT, *wanted]), "command": command}
    return target.publish(source.name, source.num_samples, notes=notes)


def _caption_columns(source: SelectionSource) -> dict[str, str]:
    """Return the columns of the mixture's captions, the web text aside, by the names they are to have."""
    sources: Mapping[str, str] = source.content["caption_sources"]
    named = name_columns([name for name in sources if name != "alt_text"])
    return {name: sources[caption] for name, caption in named.items()}


def _score_columns(source: SelectionSource, columns: Sequence[str], taken: Mapping[str, str]) -> list[str]:
    schemas = read_schemas(source)
    own = set(source.content["labels"])
    if not columns:
        columns = [
            f"{label}.{field.name}"
            for label, schema in schemas.items()
            if label in own
            for field in schema
            if field.name not in ("uid", "error") and _is_scalar(field.type)
        ]
    for name in columns:
        label, _, column = name.rpartition(".")
        if label not in schemas or column not in schemas[label].names:
            raise InputError(
                f"--column names {name!r}, which {source.pool.root} does not have; "
                f"`winnow sql --pool {source.pool.root} 'DESCRIBE pool'` lists every column"
            )
    return [name for name in columns if name not in taken.values()]


def _is_scalar(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind)
    )


def _make_recipe(source: SelectionSource) -> str:
    """Return the recipe that rebuilds the set: the pictures stored as they were, every row selected, the same weights and mixture."""
    stored: dict[str, Any] = {}
    if source.pool.exists(SETTINGS_FILE):
        stored = json.loads(source.pool.read_bytes(SETTINGS_FILE))
    columns = {"url_column": "url", "caption_column": "caption", "uid_column": "uid", "sha256_column": "sha256"}
    captions = {
        ("alt_text" if name == "alt_text" else f"{caption_key(name.removesuffix(ELEMENTS))}")
        + (ELEMENTS if name.endswith(ELEMENTS) else ""): share
        for name, share in source.content["captions"]
    }
    recipe = {
        "name": source.name,
        "download": {**{name: value for name, value in stored.items() if value is not None}, **columns},
        "select": {"name": source.name, "weight": WEIGHT, "captions": captions},
        "build": {},
    }
    head = f"# Rebuilds the selection {source.name} ({source.num_samples:,} samples) from the URLs in {SAMPLES}/.\n"
    return head + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _write(
    source: SelectionSource, columns: Mapping[str, str], num_files: int, store: Store, part: Part
) -> dict[str, Any]:
    table = source.read(part.start, part.stop, columns)
    names = [WEIGHT if name == "weight" else name for name in table.column_names]
    table = table.rename_columns(names)
    for row, url in enumerate(table["url"].to_pylist()):
        if not url or not url.startswith(("http://", "https://")):
            raise InputError(
                f"sample {table['uid'][row].as_py()} has the URL {url!r}, which nobody can fetch; drop such rows with the rule "
                "url LIKE 'http%'"
            )
    files: Files = {}
    path = f"{SAMPLES}/{part.number:05d}-of-{num_files:05d}.parquet"
    with write_file(store, path, files) as file:
        pq.write_table(table, pa.PythonFile(file, "w"), compression="zstd")
    return {"files": files}
