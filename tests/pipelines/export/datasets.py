"""Small datasets to export: two rules' worth of captions, weights of 1, 2 and 3, as built tars and as a view over the pool's."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.build import BuildConfig, build
from curate.executor import Executor
from curate.select import select
from curate.selection import Selection
from curate.store import Pool
from pipelines.export.source import DatasetSource, open_source
from schemas.progress import SilentProgress
from tests.curate.pool_builder import annotate_shard, annotated_pool
from tests.pool import CORRUPT_ROW

CAPTIONS = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}
VECTOR = pa.list_(pa.float16())
WEIGHT = "1 + row % 3"
# Readers that decode leave broken files out.
WHOLE = f"row <> {CORRUPT_ROW}"


def make_selections(root: Path) -> Pool:
    """Return a pool of three shards with the selections `mixed` (captions and weights) and `plain`."""
    pool = annotated_pool(root)
    select(pool, Selection(name="mixed", rules={"whole": WHOLE}, weight=WEIGHT, captions=CAPTIONS))
    select(pool, Selection(name="plain"))
    return pool


def embed(
    pool: Pool,
    label: str,
    column: str,
    *,
    seed: int,
    skip: int = -1,
    shards: tuple[int, ...] = (0, 1, 2),
    parameters: str = "{}",
) -> None:
    """Annotate the pool with random unit vectors of eight dimensions; the row `skip` of every shard has none."""
    for shard in shards:
        random = np.random.default_rng([seed, shard])
        vectors = random.standard_normal((12, 8))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [None if row == skip else vector.astype(np.float16) for row, vector in enumerate(vectors)]
        operator = "clip_embedding" if column == "image_embedding" else "clip_text_embedding"
        annotate_shard(
            pool, shard, label, {column: rows}, pa.schema([(column, VECTOR)]), operator=operator, parameters=parameters
        )


def read_vectors(pool: Pool, label: str, column: str) -> dict[str, np.ndarray]:
    """Return the vector of every sample that has one, by uid."""
    target = pool.labels()[label]
    found = {}
    for shard in pool.shards():
        table = pool.read_table(pool.annotation_path(target.operator, target.fingerprint, shard))
        for row in table.to_pylist():
            if row[column] is not None:
                found[row["uid"]] = np.asarray(row[column], np.float16)
    return found


def make_dataset(
    pool: Pool,
    out: Path,
    executor: Executor,
    *,
    selection: str = "mixed",
    view: bool = False,
    columns: tuple[str, ...] = (),
) -> DatasetSource:
    """Build a selection and open the dataset."""
    config = BuildConfig(view=True, columns=columns) if view else BuildConfig(shard_size=11, columns=columns)
    report = build(pool, selection, str(out), config, executor=executor, progress=SilentProgress())
    source = open_source(report.folder)
    assert isinstance(source, DatasetSource)
    return source


def read_rows(source: DatasetSource) -> list[dict[str, object]]:
    """Return every sidecar row of a dataset, with its picture under `image`."""
    rows = []
    for entry in source.index.shards:
        table = pq.read_table(source.store.locate(entry.parquet))
        data = Path(source.store.locate(entry.tar)).read_bytes()
        for row in pa.Table.to_pylist(table):
            start = row["image_offset"]
            rows.append(row | {"image": data[start : start + row["image_bytes"]]})
    return rows
