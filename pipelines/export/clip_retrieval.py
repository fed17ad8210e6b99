"""clip-retrieval's embedding folders: what autofaiss, `clip-retrieval index` and `clip-retrieval back` read.

    img_emb/img_emb_0.npy  text_emb/text_emb_0.npy  metadata/metadata_0.parquet

Row r of the three files of a number is the same sample. Vectors are unit length in half precision, as the operators wrote them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.executor import Executor
from curate.store import Store
from pipelines.export.annotation import find_embeddings, read_schemas, require_complete
from pipelines.export.source import SelectionSource
from pipelines.export.target import DigestingFile, ExportReport, Files, Part, Target, split_evenly, write_file
from schemas.errors import InputError, MissingColumnsError
from schemas.progress import Progress

FORMAT = "clip-retrieval"
# In clip-retrieval's order: where the picture came from, its text, then what a tar's JSON says.
_METADATA: Mapping[str, str] = {
    "image_path": "key",
    "caption": "caption",
    "uid": "uid",
    "url": "url",
    "key": "key",
    "width": "width",
    "height": "height",
    "original_width": "original_width",
    "original_height": "original_height",
    "sha256": "sha256",
}


def export(
    source: SelectionSource,
    out: str,
    *,
    executor: Executor,
    progress: Progress,
    image_embedding: str = "",
    text_embedding: str = "",
    caption: str = "alt_text",
    shard_size: int = 100_000,
) -> ExportReport:
    """Write a selection's embeddings to the folder `out`, at most `shard_size` rows a file.

    `image_embedding` and `text_embedding` are `label.column`; empty where the pool has one of each. `caption` is the text that the text
    embedding is of. Samples without both embeddings are left out and counted.
    """
    image, text = find_embeddings(source, image_embedding, text_embedding)
    columns = {"image_embedding": image, "text_embedding": text, **_METADATA, "caption": _find_caption(source, caption)}
    used = [source.labels[name.rpartition(".")[0]].fingerprint for name in columns.values() if "." in name]
    target = Target(
        out, FORMAT, {**source.identity(), "columns": columns, "annotations": used, "shard_size": shard_size}
    )
    if found := target.find():
        return found
    parts = split_evenly(source.num_samples, shard_size)
    results = target.run(partial(_write, source, columns, len(parts)), parts, executor, progress)
    sizes = {result["dimensions"] for result in results if result["num_rows"]}
    if len(sizes) != 1:
        raise InputError(
            f"{image} and {text} have no vectors"
            if not sizes
            else f"{image} has vectors of different lengths: {sorted(sizes)}"
        )
    num_rows = sum(result["num_rows"] for result in results)
    notes = {
        "dimensions": sizes.pop(),
        "left_out": f"{image} or {text} has no vector, see their column `error`",
        "command": f"clip-retrieval index --embeddings_folder {target.store.root} --index_folder INDEX",
    }
    return target.publish(source.name, num_rows, num_left_out=source.num_samples - num_rows, notes=notes)


def _find_caption(source: SelectionSource, caption: str) -> str:
    label, dot, column = caption.rpartition(".")
    if not dot:
        return "caption" if caption == "alt_text" else caption
    schema = read_schemas(source).get(label)
    if schema is None or column not in schema.names or not pa.types.is_string(schema.field(column).type):
        raise MissingColumnsError(
            f"--caption is {caption!r}, which is no text in {source.pool.root}; `winnow sql --pool {source.pool.root} 'DESCRIBE pool'` "
            "lists every column"
        )
    require_complete(source, label)
    return caption


def _write(
    source: SelectionSource, columns: Mapping[str, str], num_parts: int, store: Store, part: Part
) -> dict[str, Any]:
    table = source.read(part.start, part.stop, columns)
    has_both = pc.and_(pc.is_valid(table["image_embedding"]), pc.is_valid(table["text_embedding"]))
    table = table.filter(has_both)
    number = f"{part.number:0{len(str(num_parts))}d}"
    files: Files = {}
    vectors = {name: to_matrix(table[f"{name}_embedding"]) for name in ("image", "text")}
    if vectors["image"].shape != vectors["text"].shape:
        raise InputError(
            f"{columns['image_embedding']} has {vectors['image'].shape[1]} dimensions and {columns['text_embedding']} "
            f"{vectors['text'].shape[1]}; take both from one model, with --image-embedding and --text-embedding"
        )
    for path, name in ((f"img_emb/img_emb_{number}.npy", "image"), (f"text_emb/text_emb_{number}.npy", "text")):
        with write_file(store, path, files) as file:
            write_array(file, vectors[name])
    metadata = table.select([*_METADATA, "weight"])
    metadata = metadata.set_column(1, "caption", pc.fill_null(metadata["caption"].cast(pa.string()), ""))
    with write_file(store, f"metadata/metadata_{number}.parquet", files) as file:
        pq.write_table(metadata, pa.PythonFile(file, "w"), compression="zstd")
    return {"files": files, "num_rows": table.num_rows, "dimensions": vectors["image"].shape[1]}


def to_matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    """Return vectors without nulls as rows in half precision; raises `InputError` where their lengths differ."""
    lengths = pc.list_value_length(column).unique().to_pylist()
    if len(lengths) > 1:
        raise InputError(f"an embedding column has vectors of different lengths: {sorted(lengths)}; annotate again")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float16).reshape(len(column), lengths[0] if lengths else 0)


def write_array(file: DigestingFile, array: npt.NDArray[Any]) -> None:
    """Write an array as `numpy.save` does; Python objects are refused."""
    np.lib.format.write_array(file, array, allow_pickle=False)
