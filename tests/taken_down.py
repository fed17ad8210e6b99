"""A pool, and all that is made of it, with one sample whose owner wants it gone, and a search for what is left of it.

The sample is Alice's: the last row of shard 1. Her picture, her words and what models wrote of her are in every kind of file.
"""

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.build import BuildConfig, build
from curate.executor import Executor
from curate.models.answer_cache import AnswerCache, CachedEngine
from curate.models.engine import Answer, Engine, Message, Request, Sampling
from curate.models.generation import CACHE_FOLDER
from curate.select import Selection, select
from curate.store import Pool
from pipelines.export import datacomp, open_clip, parquet
from pipelines.export.source import open_source, require_dataset
from schemas.progress import SilentProgress
from schemas.sample import STATUS_SUCCESS
from schemas.uid import sample_uid
from tests.curate.pool_builder import REWRITES, SCORE, annotate_shard
from tests.pool import Row, draw, jpeg, make_rows, write_shard
from train.index import Dataset

URL = "https://photos.alice-example.org/private/alice.jpg"
CAPTION = "alice with her bicycle at the lake of tears"
RECAPTION = "a woman named alice standing beside a bicycle"
ANSWER = "  a woman named alice, as the model first said it  "
PICTURE = jpeg(draw((10, 200, 210), "circle", seed=4711))
UID = sample_uid(URL, CAPTION)
SHARD, ROW, NUM_ROWS = 1, 11, 12
# Pixels, coded; what comes before them is the same in all JPEGs of one quality.
_FRAGMENT = PICTURE[-400:-100]


class OneAnswer(Engine):
    """Says the same of everything, with what was asked."""

    def identity(self) -> dict[str, str]:
        return {"engine": "one"}

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Answer]:  # type: ignore[override]
        return [Answer(text=request.messages[-1].text, finish_reason="stop") for request in requests]


@dataclass(frozen=True)
class Scene:
    """Where everything lies."""

    root: Path

    @property
    def pool(self) -> Pool:
        return Pool(self.root / "pool")

    @property
    def datasets(self) -> list[Path]:
        return sorted(path.parent for path in (self.root / "datasets").glob("*/index.json"))

    def dataset(self, kind: str) -> Path:
        """Return the folder of the "build" or of the "view"."""
        return next(path for path in self.datasets if f'"kind": "{kind}"' in (path / "index.json").read_text())

    @property
    def cache(self) -> Path:
        return self.root / "columns"

    @property
    def exports(self) -> list[str]:
        return [str(self.root / name) for name in ("subset.npy", "open-clip", "parquet")]


def make_scene(root: Path, executor: Executor) -> Scene:
    """Make the pool, a selection, a build and a view, exports, caches."""
    scene = Scene(root)
    pool = scene.pool
    for shard in range(3):
        rows = make_rows(NUM_ROWS, seed=shard)
        if shard == SHARD:
            rows[ROW] = Row(url=URL, caption=CAPTION, image=PICTURE)
        write_shard(pool, shard, rows)
        annotate_shard(pool, shard, "b32", {"clip_score": [shard + row / 100 for row in range(NUM_ROWS)]}, SCORE)
        texts = [f"recaption {shard}-{row}" for row in range(NUM_ROWS)]
        lists = [[f"rewrite {shard}-{row}-{copy}" for copy in range(row % 4)] for row in range(NUM_ROWS)]
        if shard == SHARD:
            texts[ROW], lists[ROW] = RECAPTION, [f"{RECAPTION} once more", "and alice again"]
        annotate_shard(pool, shard, "recap", {"recaption": texts, "rewrite": lists}, REWRITES, operator="recap")
    captions = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}
    selection = Selection(name="all", rules={"good": "b32.clip_score >= 0.02"}, weight="1 + row", captions=captions)
    select(pool, selection)
    for config in (BuildConfig(shard_size=8), BuildConfig(view=True)):
        build(pool, "all", str(root / "datasets"), config, executor=executor, progress=SilentProgress())
    source = require_dataset(open_source(str(scene.dataset("build"))), "an export")
    datacomp.export(source, str(root / "subset.npy"))
    open_clip.export(source, str(root / "open-clip"), executor=executor, progress=SilentProgress(), shard_size=8)
    parquet.export(source, str(root / "parquet"), executor=executor, progress=SilentProgress(), shard_size=8)
    for folder in scene.datasets:
        Dataset.open(str(folder), cache=str(scene.cache))
    fill_answers(pool)
    return scene


def fill_answers(pool: Pool) -> None:
    """Ask a model about every picture, and keep what it says as the operators do."""
    engine = CachedEngine(OneAnswer(), AnswerCache(pool.locate(CACHE_FOLDER)))
    for shard in pool.shards():
        rows = pool.read_table(pool.shard_parquet(shard), ["uid", "status"]).to_pylist()
        uids = [row["uid"] for row in rows if row["status"] == STATUS_SUCCESS]
        asked = [Message(role="user", text=ANSWER if uid == UID else f"what of {uid}?") for uid in uids]
        requests = [Request(messages=(message,), sample=uid) for message, uid in zip(asked, uids, strict=True)]
        engine.generate(requests, Sampling())
    engine.close()


def find_traces(root: Path) -> dict[str, list[str]]:
    """Return the files below `root` in which anything of Alice's is, with what was found: in their bytes, and in decoded tables."""
    needles = {
        "url": URL.partition("://")[2],
        "host": "alice-example",
        "caption": CAPTION,
        "name": "alice",
    }
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        hits = [name for name, text in needles.items() if re.search(re.escape(text.encode()), data, re.IGNORECASE)]
        if _FRAGMENT in data:
            hits.append("picture")
        if path.suffix == ".parquet":
            hits += _search_table(path, needles)
        if hits:
            found[str(path.relative_to(root))] = hits
    return found


def _search_table(path: Path, needles: dict[str, str]) -> list[str]:
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    statistics = [str(group.column(index).statistics) for group in groups for index in range(group.num_columns)]
    table = file.read()
    text = "\n".join([repr(table.to_pylist()), repr(table.schema.metadata), *statistics]).lower()
    hits = [f"table: {name}" for name, needle in needles.items() if needle.lower() in text]
    binary = [name for name in table.column_names if pa.types.is_struct(table[name].type)]
    pictures = [value["bytes"] for name in binary for value in table[name].to_pylist() if value]
    return [*hits, *(["table: picture"] if any(_FRAGMENT in data for data in pictures) else [])]


def read_pictures(folder: Path) -> dict[str, bytes]:
    """Return the picture of every sample of a dataset by uid, read at the places that its sidecars state."""
    from train.reader import ImageReader

    dataset = Dataset.open(str(folder), cache=str(folder.parent.parent / "columns-again"))
    dataset.verify()
    rows = np.arange(dataset.num_samples)
    reader = ImageReader(dataset.tars)
    images = reader.read(dataset.table.shard[rows], dataset.table.offset[rows], dataset.table.size[rows])
    reader.close()
    return dict(zip(dataset.table.uids(rows), images, strict=True))


def tar_names(path: Path) -> list[str]:
    """Return the names of a tar's members as the standard library reads them."""
    with tarfile.open(path) as tar:
        return tar.getnames()
